"""Labels, preferences and completions of a run as a data set: Parquet files and a card.

    export_data(run, folder)
    datasets.load_dataset(folder, "labels")        # a DatasetDict, one split a strategy

Three configurations, because three kinds of rows do not fit one table:

    labels       what was asked and answered, as text and as TRL preferences have it
    preferences  what the proxy was trained on
    completions  the sampled completions with log-probabilities; splits train, feedback, evaluate

Who answered is person_1, person_2, ...: names stay in the run. Features and gold stay there, too.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shfcas_lib import bias
from shfcas_lib.analysis import agreement
from shfcas_lib.base.errors import InputError
from shfcas_lib.experiment import stages
from shfcas_lib.out import cards
from shfcas_lib.out.models import whole_folder
from shfcas_lib.storage.runs import Run

_COMPLETIONS = {
    "train": (stages.PROXY, "pool_train"),
    "feedback": (stages.CONFLICT, "pool_feedback"),
    "evaluate": (stages.PROXY, "pool_evaluate"),
}
_KEPT = [
    "prompt_id",
    "index",
    "prompt",
    "completion",
    "n_tokens",
    "ended",
    "logp",
    "logp_mean",
    "logp_vllm",
]
_SIDES = {"i": "first", "j": "second"}

Tables = dict[str, dict[str, pd.DataFrame]]  # configuration to split to rows


def export_data(run: Run, folder: Path) -> list[str]:
    """Write a run's data set into a new folder; lines that say what is there. Raises InputError
    for a run without labels."""
    tables = {
        "labels": labels(run),
        "preferences": preferences(run),
        "completions": completions(run),
    }
    lines = []
    with whole_folder(folder) as scratch:
        for name, splits in tables.items():
            for split, table in splits.items():
                (scratch / name).mkdir(exist_ok=True)
                table.to_parquet(scratch / name / f"{split}.parquet", index=False)
                lines.append(f"{folder}/{name}/{split}.parquet: {len(table)} rows")
        cards.write(scratch, card(run, tables))
    return lines


def labels(run: Run) -> dict[str, pd.DataFrame]:
    """Labels by strategy, in the order of the rounds.

    Columns prompt_id, i, j, label (missing: skipped), round, prompt, first, second, chosen and
    rejected (missing for ties and skipped pairs), who; and grade and drawn where the run has them.
    """
    train = run.require(stages.PROXY, "pool_train")
    feedback = run.require(stages.CONFLICT, "pool_feedback")
    given, pool = agreement.collected(run, train, feedback)
    who = _pseudonyms(given)
    tables = {}
    for name, table in given.items():
        # the run's own numbers of completions: a round's fresh ones have others in `pool`
        own = cards.labels_of(run, name)
        told = _as_text(table.assign(round=own["round"].to_numpy()), pool, who)
        tables[name] = told.assign(i=own["i"], j=own["j"])
    if not any(len(table) for table in tables.values()):
        raise InputError(f"run {run.params.run!r} has no labels: there is nothing to write")
    return tables


def _pseudonyms(given: dict[str, pd.DataFrame]) -> dict[str, str]:
    """person_1, person_2, ... for everybody who answered, in the order of their names."""
    people = pd.concat(given)["annotator"].str.split(", ").explode()
    return {name: f"person_{k}" for k, name in enumerate(sorted(people.unique()), 1)}


def _as_text(table: pd.DataFrame, pool: pd.DataFrame, who: dict[str, str]) -> pd.DataFrame:
    """Labels with the texts that they are about."""
    texts = pool.drop_duplicates(["prompt_id", "index"]).set_index(["prompt_id", "index"])
    kept = [name for name in ("label", "grade", "round", "drawn") if name in table]
    told = table[["prompt_id", "i", "j", *kept]].reset_index(drop=True)
    for side, name in _SIDES.items():
        at = pd.MultiIndex.from_frame(told[["prompt_id", side]])
        told[name] = texts["completion"].reindex(at).to_numpy()
    told["prompt"] = texts["prompt"].reindex(at).to_numpy()
    label = told["label"]
    told["chosen"] = told["first"].where(label > 0.5, told["second"].where(label < 0.5))
    told["rejected"] = told["second"].where(label > 0.5, told["first"].where(label < 0.5))
    people = table["annotator"].str.split(", ")
    told["who"] = [", ".join(sorted(who[name] for name in names)) for names in people]
    return told


def preferences(run: Run) -> dict[str, pd.DataFrame]:
    """The preferences that trained the proxy: prompt_id, i, j, label, prompt, first, second. No
    table where the proxy is a published model."""
    if run.params.reward.published:
        return {}
    pool = run.require(stages.PROXY, "pool_train")
    seen = bias.observed(run.require(stages.PROXY, "preferences_biased"))
    told = _as_text(seen.assign(annotator=""), pool, {"": ""})
    return {"train": told.drop(columns=["who", "chosen", "rejected"])}


def completions(run: Run) -> dict[str, pd.DataFrame]:
    """The pools without tokens and features."""
    pools = {split: run.require(*place) for split, place in _COMPLETIONS.items()}
    return {split: pool[[c for c in _KEPT if c in pool]] for split, pool in pools.items()}


def card(run: Run, tables: Tables) -> str:
    """The data set's card, whose head tells `datasets` where the splits are."""
    configs = []
    for name, splits in tables.items():
        configs += [f"- config_name: {name}", "  data_files:"] if splits else []
        for split in splits:
            configs += [f"  - split: {split}", f"    path: {name}/{split}.parquet"]
    sizes = [
        f"| {name} | {split} | {len(table)} |"
        for name, splits in tables.items()
        for split, table in splits.items()
    ]
    base, licence = cards.base_told(run.params.model.source)
    told = cards.preferences_told(run)
    for name in run.params.selection.strategies:
        told += cards.labels_told(run, name)
    lines = [
        "---",
        "configs:",
        *configs,
        "tags: [rlhf, preferences, shf-cas]",
        "---",
        "",
        f"# Labels and completions of the run {run.params.run}",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'load_dataset(".", "labels")  # a DatasetDict; splits: {", ".join(tables["labels"])}',
        "```",
        "",
        "| configuration | split | rows |",
        "|---|---|---|",
        *sizes,
        "",
        "`label` is the probability that `first` is preferred to `second`: 1, 0, 0.5 for a tie,",
        "missing where everybody skipped. Pairs were chosen by the strategy that names the split:",
        "only those of `random` are a fair sample. `logp` is the log-probability of the whole",
        "completion at temperature 1, in nats. A prompt that is a chat history is the JSON of its",
        "messages.",
        "",
        *[f"- {text}" for text in dict.fromkeys(told)],
        "",
        f"The completions were written by {base} (licence: {licence}), sampled at temperature"
        f" {run.params.sampling.temperature:g}. Prompts and preferences of your own have your own"
        " licence: say it here before you publish.",
        "",
    ]
    return "\n".join(lines)
