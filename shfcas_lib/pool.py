"""Sampled completions: policy and prompts go in, a pool table comes out.

The pool has one row per completion, with the columns

    prompt_id, index    the completion's name
    prompt, completion  the texts
    tokens, n_tokens    its token ids, and how many they are
    ended               was an end-of-turn token produced?
    logp                l_i = sum over completion tokens of log pi(y_t | x, y_<t) at temperature 1,
                        the end token included where it was produced, no prompt tokens, no padding
    logp_mean           the same per token
    features            what a probe reads (`models.decoding`)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib.base import processes, progress
from shfcas_lib.base.batches import by_prompt
from shfcas_lib.base.errors import InputError
from shfcas_lib.models import vllm_engine
from shfcas_lib.models.decoding import decode, teacher_force
from shfcas_lib.params.schema import Sampling

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone
    from shfcas_lib.models.tokens import Sequence

TOKENS = 4096  # of the prompts that `score` reads at once, padding included
COLUMNS = [
    "prompt_id",
    "index",
    "prompt",
    "completion",
    "tokens",
    "n_tokens",
    "ended",
    "logp",
    "logp_mean",
    "features",
]

Scorer = Callable[[pd.DataFrame], pd.DataFrame]


def as_it_is(pool: pd.DataFrame) -> pd.DataFrame:
    """The scorer of a run whose proxy is trained here: nothing is added to a pool."""
    return pool


def sample(
    backbone: Backbone,
    prompts: pd.DataFrame,
    sampling: Sampling,
    seed: int,
    label: str = "sampling",
    scorer: Scorer = as_it_is,
) -> pd.DataFrame:
    """Draw `sampling.n` completions for each prompt from whichever adapter is in use.

    backbone: of `load_backbone`. prompts: columns prompt_id, prompt. scorer: adds the scores of
    a published proxy to the pool (`published.scorer`). Returns the pool, sorted by (prompt_id,
    index). Each completion draws from its own generator, named by (seed, prompt_id, index): the
    order of prompts does not change what is sampled, and another batch size changes it only
    where rounding decides between two tokens (in float32 about one completion in a hundred).
    Log-probabilities and features are recorded by the decode steps themselves; no second
    forward pass is made. Several processes share out whole batches, and each returns the whole
    pool.

    With `sampling.engine` vllm another engine writes the base policy's completions (module
    vllm_engine); log-probabilities and features are then a second pass's, and the column
    logp_vllm is added. Adapters are sampled here always.

    Raises InputError for a prompt that does not fit the context, and when every completion of the
    pool is empty.
    """
    backbone.check_prompts(list(prompts["prompt"]), room=sampling.max_new_tokens)
    texts = dict(zip(prompts["prompt_id"], prompts["prompt"], strict=True))
    ids = {prompt_id: backbone.prompt_ids(text) for prompt_id, text in texts.items()}
    if sampling.engine == "vllm" and backbone.active is None:
        pool = _drawn_by_vllm(backbone, texts, ids, sampling, seed, label)
    else:
        pool = _drawn(backbone, ids, sampling, seed, label)
        pool["prompt"] = pool["prompt_id"].map(texts)

    pool = pool.sort_values(["prompt_id", "index"], ignore_index=True)
    if not pool["completion"].str.strip().astype(bool).any():
        raise InputError(
            "every sampled completion is empty: check model.source, its chat template and"
            " sampling.max_new_tokens"
        )
    return scorer(pool)


def _drawn(
    backbone: Backbone, ids: dict[str, list[int]], sampling: Sampling, seed: int, label: str
) -> pd.DataFrame:
    """Completions by the backbone itself, a pool table without its prompts."""
    # prompts of like length share a batch: little padding
    order = sorted(ids, key=lambda prompt_id: (len(ids[prompt_id]), prompt_id))
    size = max(1, sampling.batch_size // sampling.n)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    mine = processes.share(batches)

    rows: list[dict] = []
    with _bar(sum(map(len, mine)) * sampling.n, label) as bar:
        for batch in mine:
            rows += decode(backbone, batch, [ids[p] for p in batch], sampling, seed)
            bar.update(len(batch) * sampling.n)
    return processes.gathered(pd.DataFrame(rows, columns=COLUMNS))


def _drawn_by_vllm(
    backbone: Backbone,
    texts: dict[str, str],
    ids: dict[str, list[int]],
    sampling: Sampling,
    seed: int,
    label: str,
) -> pd.DataFrame:
    """Completions by vLLM, read once by the backbone: a pool table and the column logp_vllm."""
    drawn = vllm_engine.draw(backbone, ids, sampling, seed)
    drawn["prompt"] = drawn["prompt_id"].map(texts)
    pool = score(backbone, drawn, label=f"{label}, written by vLLM")
    return pool.assign(logp_vllm=drawn["logp_vllm"].to_numpy())


def sample_adapted(
    backbone: Backbone,
    adapter: str,
    prompts: pd.DataFrame,
    sampling: Sampling,
    seed: int,
    label: str,
    scorer: Scorer = as_it_is,
) -> pd.DataFrame:
    """Sample from a trained policy. logp is that policy's; features, and the extra column
    logp_reference, come from a second pass with the adapters off: rewards read the backbone's own
    hidden states, whoever wrote the completion."""
    with backbone.using(adapter):
        pool = sample(backbone, prompts, sampling, seed, label)
    with backbone.using(None):
        reference = score(backbone, pool, label=f"{label}, reference")
    features, logp = reference["features"].to_numpy(), reference["logp"].to_numpy()
    return scorer(pool.assign(features=features, logp_reference=logp))


def score(
    backbone: Backbone,
    completions: pd.DataFrame,
    most: int = TOKENS,
    label: str = "scoring",
    scorer: Scorer = as_it_is,
) -> pd.DataFrame:
    """Log-probabilities and features of given completions, by one teacher-forced pass with the
    adapter in use.

    backbone: of `load_backbone`. completions: columns prompt_id, index, prompt, completion, and
    optionally tokens (the sampled ids; without them the text is tokenised and closed with the
    end token). most: tokens of a batch's prompts, padding included. Returns a pool table in the
    same order of rows, where a prompt's identical completions have identical numbers: each is
    read once, and a prompt once for all completions beside each other in a batch. Another `most`
    changes numbers by rounding alone (log-probabilities of the embedded model by 1e-4 at most).
    Several processes share out whole batches, and each returns the whole table. Raises
    InputError for a completion that does not fit the context with its prompt.
    """
    sequences = backbone.writer.rows(completions)
    _check_lengths(backbone, completions, sequences)
    first: dict[tuple, int] = {}
    for place, (prompt, answer) in enumerate(sequences):
        first.setdefault((tuple(prompt), tuple(answer)), place)
    places = list(first.values())
    names = list(zip(completions["prompt_id"], completions["index"], strict=True))
    batches = by_prompt([sequences[place].prompt for place in places], most)

    rows: list[dict] = []
    with _bar(len(places), label) as bar:
        for batch in processes.share(batches):
            mine = [places[k] for k in batch]
            asked, given = [names[place] for place in mine], [sequences[place] for place in mine]
            read = teacher_force(
                backbone, asked, given, lambda n: bar.update(n * processes.count())
            )
            rows += [{"place": place, **row} for place, row in zip(mine, read, strict=True)]

    table = processes.gathered(pd.DataFrame(rows, columns=["place", *COLUMNS]))
    read_at = [first[tuple(prompt), tuple(answer)] for prompt, answer in sequences]
    table = table.set_index("place").loc[read_at].reset_index(drop=True)
    for column in ("prompt_id", "index", "prompt"):
        table[column] = completions[column].to_numpy()
    return scorer(table[COLUMNS])


def _check_lengths(
    backbone: Backbone, completions: pd.DataFrame, sequences: list[Sequence]
) -> None:
    """Raise InputError for a completion that does not fit the context with its prompt."""
    for place, sequence in enumerate(sequences):
        row = completions.iloc[place]
        name = f"completion {row['index']} of prompt {row['prompt_id']}"
        if not sequence.completion:
            raise InputError(f"{name} has no tokens, expected at least one")
        if len(sequence.ids) > backbone.context:
            raise InputError(
                f"{name} has {len(sequence.ids)} tokens with its prompt, more than the model's"
                f" context of {backbone.context}"
            )


def reference_features(backbone: Backbone, completions: pd.DataFrame) -> pd.DataFrame:
    """The completions with the features that a probe reads, by one pass with the adapters off,
    this process on its own and no bar shown. completions: as for `score`, of one batch."""
    names = list(zip(completions["prompt_id"], completions["index"], strict=True))
    with backbone.using(None):
        rows = pd.DataFrame(teacher_force(backbone, names, backbone.writer.rows(completions)))
    return rows.assign(prompt=completions["prompt"].to_numpy())[COLUMNS]


def _bar(total: int, label: str):
    """A progress bar over completions, shown by the main process alone."""
    return progress.bar(total, label, "completion")


def features(pool: pd.DataFrame) -> np.ndarray:
    """The pool's features as one float64 array, completions x features."""
    return np.stack(pool["features"].to_numpy()).astype(np.float64)


def with_facts(pool: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """The pool's texts with what gold may need to know of the prompt.

    Columns prompt_id, index, prompt, completion, harmful.
    """
    harmful = dict(zip(prompts["prompt_id"], prompts["harmful"], strict=True))
    texts = pool[["prompt_id", "index", "prompt", "completion"]]
    return texts.assign(harmful=texts["prompt_id"].map(harmful))
