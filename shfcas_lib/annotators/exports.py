"""What people said, for others: tables, TRL preferences, and how far they agree."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from shfcas_lib.base.errors import InputError
from shfcas_lib.storage import files
from shfcas_lib.storage.labels import _KEY, LabelStore, margin


def agreement(store: LabelStore) -> pd.DataFrame:
    """How far people agree with themselves and with each other.

    Columns: measure, who, value, items.

    Self-agreement is the share of blind repeats that got the same answer; better and much better
    for one side are the same answer. Of those, where they are graded, "self-agreement, grades" is
    the share that got the same grade. Between people, answers
    are categories (first, second, tie, both_bad; or the ratings): Cohen's kappa for every pair of
    them over what both answered, Krippendorff's alpha over all. 1 is perfect, 0 what chance would
    give; NaN where it is not defined, as where only one category was ever used.
    """
    table = store.by_annotator()
    table = table[table["answer"] != "skip"].assign(j=table["j"].fillna(-1))
    once, again = table[~table["repeat"]], table[table["repeat"]]
    both = again.merge(once, on=[*_KEY, "annotator"], suffixes=("_again", ""))
    rows = [
        ("self-agreement", name, float((part["answer"] == part["answer_again"]).mean()), len(part))
        for name, part in both.groupby("annotator")
    ]
    rows += _same_grades(both)
    for kind, part in (("comparisons", once[once["j"] >= 0]), ("ratings", once[once["j"] < 0])):
        wide = part.pivot(index=_KEY, columns="annotator", values="answer")
        if wide.shape[1] < 2:
            continue
        for one, other in combinations(wide, 2):
            shared = wide[[one, other]].dropna()
            kappa = _kappa(shared[one], shared[other])
            rows.append((f"Cohen's kappa, {kind}", f"{one} and {other}", kappa, len(shared)))
        several = wide.notna().sum(axis=1) > 1
        names, alpha = ", ".join(wide), _alpha(wide[several])
        rows.append((f"Krippendorff's alpha, {kind}", names, alpha, int(several.sum())))
    return pd.DataFrame(rows, columns=["measure", "who", "value", "items"])


def _same_grades(both: pd.DataFrame) -> list[tuple[str, str, float, int]]:
    """How often each person gave a blind repeat the same grade, where both are for one side."""
    if "grade" not in both:
        return []
    both = both[both["answer"] == both["answer_again"]].dropna(subset=["grade", "grade_again"])
    rows = []
    for name, part in both.groupby("annotator"):
        same = float((part["grade"] == part["grade_again"]).mean())
        rows.append(("self-agreement, grades", name, same, len(part)))
    return rows


def _kappa(one: pd.Series, other: pd.Series) -> float:
    from statsmodels.stats.inter_rater import cohens_kappa

    words = sorted(set(one) | set(other))
    if len(words) < 2:
        return math.nan
    counts = pd.crosstab(one, other).reindex(index=words, columns=words, fill_value=0)
    return float(cohens_kappa(counts.to_numpy()).kappa)


def _alpha(shared: pd.DataFrame) -> float:
    """Krippendorff's alpha. shared: the items that several people answered, by people."""
    import krippendorff

    codes, words = pd.factorize(shared.to_numpy().ravel(), sort=True)
    if len(words) < 2:
        return math.nan
    values = np.where(codes < 0, np.nan, codes.astype(float)).reshape(shared.shape)
    return float(krippendorff.alpha(reliability_data=values.T, level_of_measurement="nominal"))


def export(
    store: LabelStore, completions: pd.DataFrame, folder: Path, conversational: bool = False
) -> dict[str, int]:
    """Write what people said, for this library and for others.

    completions: prompt_id, index, prompt, completion of all that was compared. Returns how many
    rows of each kind there are. Files:

        labels.parquet       one row a comparison
        answers.parquet      who said what
        ratings.parquet      ratings of single completions
        preferences.parquet  TRL's preference format: prompt, chosen, rejected, as text or
        preferences.jsonl    (conversational) as messages; ties and skipped comparisons have no
                             chosen side, so they are left out and counted. Where answers are
                             graded, margin: 0 better, 1 much better
    """
    labels = store.labels()
    decided = labels[labels["label"].notna() & (labels["label"] != 0.5)]
    pairs = as_preferences(decided, completions, conversational)
    tables = {
        "labels": labels,
        "answers": store.by_annotator(),
        "ratings": store.ratings(),
        "preferences": pairs,
    }
    for name, table in tables.items():
        with files.atomic(folder / f"{name}.parquet") as target:
            table.to_parquet(target, index=False)
    with files.atomic(folder / "preferences.jsonl") as target:
        pairs.to_json(target, orient="records", lines=True, force_ascii=False)
    return {
        "comparisons": len(labels),
        "preferences": len(pairs),
        "ties": int((labels["label"] == 0.5).sum()),
        "skipped": int(labels["label"].isna().sum()),
        "ratings": len(tables["ratings"]),
    }


def as_preferences(
    labels: pd.DataFrame, completions: pd.DataFrame, conversational: bool = False
) -> pd.DataFrame:
    """Decided labels as TRL preferences: prompt, chosen, rejected, in the order of `labels`.

    Labels with grades have a fourth column, margin: see `storage.labels.margin`. Raises
    InputError for a completion that the table lacks.
    """
    texts = completions.drop_duplicates(["prompt_id", "index"]).set_index(["prompt_id", "index"])
    rows = []
    for row in labels.itertuples():
        chosen, rejected = (row.i, row.j) if row.label > 0.5 else (row.j, row.i)
        first, second = (row.prompt_id, chosen), (row.prompt_id, rejected)
        for key in (first, second):
            if key not in texts.index:
                raise InputError(
                    f"completion {key[1]} of prompt {row.prompt_id} was compared, but is not among"
                    " the completions to export"
                )
        prompt, better = texts.loc[first, "prompt"], texts.loc[first, "completion"]
        rows.append((prompt, better, texts.loc[second, "completion"]))
    table = pd.DataFrame(rows, columns=["prompt", "chosen", "rejected"])
    if conversational:
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        for column, role in roles.items():
            table[column] = [[{"role": role, "content": text}] for text in table[column]]
    return table.assign(margin=margin(labels)) if "grade" in labels else table
