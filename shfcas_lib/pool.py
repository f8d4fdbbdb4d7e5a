"""Sampled completions: policy and prompts go in, a pool table comes out.

The pool has one row per completion, with the columns
    prompt_id, index    the completion's name
    prompt, completion  the texts
    tokens, n_tokens    its token ids, and how many they are
    ended               was an end-of-turn token produced?
    logp                l_i = sum over completion tokens of log pi(y_t | x, y_<t) at temperature 1, the end token included
                        where it was produced, no prompt tokens, no padding
    logp_mean           the same per token
    features            what a probe reads (`models.decoding`)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib.base import processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.models import vllm_engine
from shfcas_lib.models.decoding import decode, teacher_force
from shfcas_lib.params.schema import Sampling

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone

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


def sample(
    backbone: Backbone,
    prompts: pd.DataFrame,
    sampling: Sampling,
    seed: int,
    label: str = "sampling",
) -> pd.DataFrame:
    """Draw `sampling.n` completions for each prompt from whichever adapter is in use.

    prompts: columns prompt_id, prompt. Returns the pool, sorted by (prompt_id, index). Each
    completion draws from its own generator, named by (seed, prompt_id, index): the order of
    prompts does not change what is sampled, and another batch size changes it only where rounding
    decides between two tokens (in float32 about one completion in a hundred). Log-probabilities
    and features are recorded by the decode steps themselves; no second forward pass is made.
    Several processes share out whole batches, and each returns the whole pool. With
    `sampling.engine` vllm another engine writes the base policy's completions (module
    vllm_engine); log-probabilities and features are then a second pass's, and the column
    logp_vllm is added. Adapters are sampled here always. Raises InputError for a prompt that does
    not fit the context, and when every completion of the pool is empty."""
    backbone.check_prompts(list(prompts["prompt"]), room=sampling.max_new_tokens)
    texts = dict(zip(prompts["prompt_id"], prompts["prompt"]))
    ids = {prompt_id: backbone.prompt_ids(text) for prompt_id, text in texts.items()}
    if sampling.engine == "vllm" and backbone.active is None:
        pool = _drawn_by_vllm(backbone, texts, ids, sampling, seed, label)
    else:
        pool = _drawn(backbone, ids, sampling, seed, label).assign(
            prompt=lambda t: t["prompt_id"].map(texts)
        )
    pool = pool.sort_values(["prompt_id", "index"], ignore_index=True)
    if not pool["completion"].str.strip().astype(bool).any():
        raise InputError(
            "every sampled completion is empty: check model.source, its chat template and"
            " sampling.max_new_tokens"
        )
    return pool


def _drawn(
    backbone: Backbone, ids: dict[str, list[int]], sampling: Sampling, seed: int, label: str
) -> pd.DataFrame:
    """Completions by the backbone itself, a pool table without its prompts."""
    from tqdm import tqdm

    # prompts of like length share a batch: little padding
    order = sorted(ids, key=lambda p: (len(ids[p]), p))
    per_batch = max(1, sampling.batch_size // sampling.n)
    mine = processes.share(
        [order[start : start + per_batch] for start in range(0, len(order), per_batch)]
    )
    rows: list[dict] = []
    with tqdm(
        total=sum(map(len, mine)) * sampling.n,
        desc=label,
        unit="completion",
        mininterval=1,
        disable=_silent(),
    ) as bar:
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
    pool = score(
        backbone,
        drawn.assign(prompt=drawn["prompt_id"].map(texts)),
        label=f"{label}, written by vLLM",
    )
    return pool.assign(logp_vllm=drawn["logp_vllm"].to_numpy())


def sample_adapted(
    backbone: Backbone,
    adapter: str,
    prompts: pd.DataFrame,
    sampling: Sampling,
    seed: int,
    label: str,
) -> pd.DataFrame:
    """Sample from a trained policy. logp is that policy's; features, and the extra column
    logp_reference, come from a second pass with the adapters off: rewards read the backbone's own
    hidden states, whoever wrote the completion."""
    with backbone.using(adapter):
        pool = sample(backbone, prompts, sampling, seed, label)
    with backbone.using(None):
        reference = score(backbone, pool, label=f"{label}, reference")
    return pool.assign(
        features=reference["features"].to_numpy(), logp_reference=reference["logp"].to_numpy()
    )


def score(
    backbone: Backbone, completions: pd.DataFrame, batch_size: int = 16, label: str = "scoring"
) -> pd.DataFrame:
    """Log-probabilities and features of given completions, by one teacher-forced pass with the
    adapter in use.

    completions: columns prompt_id, index, prompt, completion, and optionally tokens (the sampled
    ids; without them the text is tokenised and closed with the end token). Returns a pool table
    in the same order of rows, where a prompt's identical completions have identical numbers.
    Several processes share out whole batches, and each returns the whole table."""
    from tqdm import tqdm

    mine = processes.share(range(0, len(completions), batch_size))
    rows: list[dict] = []
    with tqdm(
        total=len(completions), desc=label, unit="completion", mininterval=1, disable=_silent()
    ) as bar:
        for start in mine:
            batch = completions.iloc[start : start + batch_size]
            rows += [
                {"place": start + k, **row} for k, row in enumerate(teacher_force(backbone, batch))
            ]
            bar.update(len(batch) * processes.count())
    table = processes.gathered(pd.DataFrame(rows, columns=["place", *COLUMNS])).sort_values(
        "place", ignore_index=True
    )
    table["prompt"] = completions["prompt"].to_numpy()
    same = (
        table.groupby(["prompt", table["tokens"].map(tuple)])["place"].transform("first").to_numpy()
    )
    for column in (
        "logp",
        "logp_mean",
        "features",
    ):  # batches round differently, and what is said twice must stay a tie
        table[column] = table[column].to_numpy()[same]
    return table[COLUMNS]


def reference_features(backbone: Backbone, completions: pd.DataFrame) -> pd.DataFrame:
    """The completions with the features that a probe reads, by one pass with the adapters off,
    this process on its own and no bar shown. completions: as for `score`, of one batch."""
    with backbone.using(None):
        rows = pd.DataFrame(teacher_force(backbone, completions))
    return rows.assign(prompt=completions["prompt"].to_numpy())[COLUMNS]


def _silent() -> bool | None:
    """Bars of the main process alone; None leaves it to tqdm."""
    return None if processes.is_main() else True


def features(pool: pd.DataFrame) -> np.ndarray:
    """The pool's features as one float64 array, completions x features."""
    return np.stack(pool["features"].to_numpy()).astype(np.float64)


def with_facts(pool: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """The pool's texts with what gold may need to know of the prompt: columns prompt_id, index,
    prompt, completion, harmful."""
    harmful = dict(zip(prompts["prompt_id"], prompts["harmful"]))
    return pool[["prompt_id", "index", "prompt", "completion"]].assign(
        harmful=pool["prompt_id"].map(harmful)
    )
