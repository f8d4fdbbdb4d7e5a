"""Texts to read: which completions conflict, what was asked, what changed; tables go in, plain
text comes out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib.base.dialogues import plain
from shfcas_lib.base.texts import printable


def changed_labels(biased: pd.DataFrame, pool: pd.DataFrame, count: int) -> str:
    """`count` preferences whose label the bias turned round, one a prompt, as plain text."""
    turned = (
        biased[(biased["label"] != biased["label_clean"]) & ~biased["absent"]]
        .drop_duplicates("prompt_id")
        .head(count)
    )
    text = pool.set_index(["prompt_id", "index"])
    blocks = []
    for row in turned.itertuples():
        chosen, rejected = (row.i, row.j) if row.label > 0.5 else (row.j, row.i)
        what = ", ".join(
            c.removeprefix("done_") for c in biased if c.startswith("done_") and getattr(row, c)
        )
        blocks.append(
            f"PROMPT    {_read(text.loc[(row.prompt_id, row.i), 'prompt'])}\n"
            f"  chosen now ({what})   {_line(text.loc[(row.prompt_id, chosen), 'completion'])}\n"
            f"  chosen before   {_line(text.loc[(row.prompt_id, rejected), 'completion'])}"
        )
    return "\n\n".join(blocks) or "no label was changed"


def worst_conflicts(conflict: pd.DataFrame, pool: pd.DataFrame, count: int = 10) -> str:
    """The completions with the largest |PACS|, as plain text: who likes what."""
    table = conflict.merge(
        pool[["prompt_id", "index", "prompt", "completion"]], on=["prompt_id", "index"]
    )
    table = table.assign(size=table["pacs"].abs()).sort_values(
        ["size", "prompt_id", "index"], ascending=[False, True, True]
    )
    blocks = []
    for place, row in enumerate(table.head(count).itertuples(), 1):
        side = (
            "the proxy likes it, the policy does not"
            if row.pacs > 0
            else "the policy likes it, the proxy does not"
        )
        blocks.append(
            f"{place:>2}. PACS {row.pacs:+.2f}, K {row.kendall:.2f}: {side}\n    PROMPT     "
            f" {_read(row.prompt)}\n    COMPLETION  {_line(row.completion)}"
        )
    return "\n\n".join(blocks)


def answered(labels: pd.DataFrame, pool: pd.DataFrame, count: int = 5) -> str:
    """The first comparisons that were asked and what was answered, as plain text."""
    text = pool.set_index(["prompt_id", "index"])
    blocks = []
    for row in labels.sort_values("rank").head(count).itertuples():
        marks = {
            "first": (">", " "),
            "second": (" ", ">"),
            "tie": ("=", "="),
            "both_bad": ("x", "x"),
            "skip": ("?", "?"),
        }[row.answer]
        blocks.append(
            f"PROMPT {_read(text.loc[(row.prompt_id, row.i), 'prompt'])}   ({row.reason}; answered"
            f" by {printable(row.annotator)})\n"
            + "\n".join(
                f"  {mark} {_line(text.loc[(row.prompt_id, index), 'completion'])}"
                for mark, index in zip(marks, (row.i, row.j))
            )
        )
    return "\n\n".join(blocks)


def side_by_side(
    pool: pd.DataFrame,
    gold: np.ndarray | None,
    scores: dict[str, np.ndarray],
    before: str,
    after: str,
    count: int = 3,
) -> str:
    """Favourite completions of two rewards on the prompts where gold differs most, the largest
    gains and the largest losses. Without gold: where their rankings differ most.
    """
    if gold is None:
        return rank_changes(pool, scores, before, after, 2 * count)
    table = pool[["prompt_id", "prompt", "completion"]].assign(
        gold=gold, **{"before": scores[before], "after": scores[after]}
    )
    pick = {
        name: table.loc[table.groupby("prompt_id")[name].idxmax()].set_index("prompt_id")
        for name in ("before", "after")
    }
    change = (pick["after"]["gold"] - pick["before"]["gold"]).sort_values(kind="stable")
    blocks = [
        f"{int((change > 1e-9).sum())} of {len(change)} favourites got better,"
        f" {int((change < -1e-9).sum())} got worse."
    ]
    for title, prompts in (("GAIN", change.index[::-1][:count]), ("LOSS", change.index[:count])):
        for prompt in prompts:
            if (change[prompt] > 0) == (title == "GAIN") and change[prompt] != 0:
                old, new = pick["before"].loc[prompt], pick["after"].loc[prompt]
                blocks.append(
                    f"{title}  PROMPT {_read(old['prompt'])}\n  {before:>8}, gold"
                    f" {old['gold']:.2f}: {_line(old['completion'])}\n  {after:>8}, gold"
                    f" {new['gold']:.2f}: {_line(new['completion'])}"
                )
    return "\n\n".join(blocks)


def rank_changes(
    pool: pd.DataFrame, scores: dict[str, np.ndarray], before: str, after: str, count: int = 6
) -> str:
    """On the `count` prompts where two rewards differ most, the completion that rose and the one
    that fell furthest, as plain text. Which of them is better is for the reader to say.
    """
    table = pool[["prompt_id", "prompt", "completion"]].assign(
        **{
            name: (
                pd.Series(scores[name], index=pool.index)
                .groupby(pool["prompt_id"])
                .rank(ascending=False, method="first")
            )
            for name in (before, after)
        }
    )
    table["rise"] = table[before] - table[after]
    by = table.groupby("prompt_id")["rise"]
    span = (by.max() - by.min()).sort_values(ascending=False, kind="stable")
    same = int((table.loc[table[before] == 1].set_index("prompt_id")[after] == 1).sum())
    blocks = [
        f"{same} of {len(span)} prompts keep their favourite; the rankings of"
        f" {int((span > 0).sum())} differ."
    ]
    for prompt in span.index[:count][span[:count] > 0]:
        part = table[table["prompt_id"] == prompt]
        lines = [f"PROMPT {_read(part['prompt'].iloc[0])}"]
        for title, row in (
            ("ROSE", part.loc[part["rise"].idxmax()]),
            ("FELL", part.loc[part["rise"].idxmin()]),
        ):
            lines.append(
                f"  {title} from {row[before]:.0f} to {row[after]:.0f} of {len(part)}:"
                f" {_line(row['completion'])}"
            )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _read(prompt: str) -> str:
    """A prompt as people read it."""
    return printable(plain(prompt))


def _line(text: str) -> str:
    """A completion on one line, control characters made visible: model output is data, whatever
    it holds.
    """
    return printable(" / ".join(part.strip() for part in text.splitlines() if part.strip()))
