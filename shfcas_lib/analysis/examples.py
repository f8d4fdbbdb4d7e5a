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
    differs = biased["label"] != biased["label_clean"]
    turned = biased[differs & ~biased["absent"]].drop_duplicates("prompt_id").head(count)
    mechanisms = [column for column in biased if column.startswith("done_")]
    text = pool.set_index(["prompt_id", "index"])
    blocks = []
    for row in turned.itertuples():
        chosen, rejected = (row.i, row.j) if row.label > 0.5 else (row.j, row.i)
        done = [m.removeprefix("done_") for m in mechanisms if getattr(row, m)]
        now = _line(text.loc[(row.prompt_id, chosen), "completion"])
        before = _line(text.loc[(row.prompt_id, rejected), "completion"])
        blocks.append(
            f"PROMPT    {_read(text.loc[(row.prompt_id, row.i), 'prompt'])}\n"
            f"  chosen now ({', '.join(done)})   {now}\n"
            f"  chosen before   {before}"
        )
    return "\n\n".join(blocks) or "no label was changed"


def worst_conflicts(conflict: pd.DataFrame, pool: pd.DataFrame, count: int = 10) -> str:
    """The completions with the largest |PACS|, as plain text: who likes what."""
    texts = pool[["prompt_id", "index", "prompt", "completion"]]
    table = conflict.merge(texts, on=["prompt_id", "index"])
    table["size"] = table["pacs"].abs()
    worst = table.sort_values(["size", "prompt_id", "index"], ascending=[False, True, True])
    blocks = []
    for place, row in enumerate(worst.head(count).itertuples(), 1):
        side = "the policy likes it, the proxy does not"
        if row.pacs > 0:
            side = "the proxy likes it, the policy does not"
        blocks.append(
            f"{place:>2}. PACS {row.pacs:+.2f}, K {row.kendall:.2f}: {side}\n"
            f"    PROMPT      {_read(row.prompt)}\n"
            f"    COMPLETION  {_line(row.completion)}"
        )
    return "\n\n".join(blocks)


_MARKS = {
    "first": (">", " "),
    "second": (" ", ">"),
    "tie": ("=", "="),
    "both_bad": ("x", "x"),
    "skip": ("?", "?"),
}


def answered(labels: pd.DataFrame, pool: pd.DataFrame, count: int = 5) -> str:
    """The first comparisons that were asked and what was answered, as plain text."""
    text = pool.set_index(["prompt_id", "index"])
    blocks = []
    for row in labels.sort_values("rank").head(count).itertuples():
        prompt = _read(text.loc[(row.prompt_id, row.i), "prompt"])
        by = printable(row.annotator)
        lines = [f"PROMPT {prompt}   ({row.reason}; answered by {by})"]
        for mark, index in zip(_MARKS[row.answer], (row.i, row.j), strict=True):
            lines.append(f"  {mark} {_line(text.loc[(row.prompt_id, index), 'completion'])}")
        blocks.append("\n".join(lines))
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
    columns = {"gold": gold, "before": scores[before], "after": scores[after]}
    table = pool[["prompt_id", "prompt", "completion"]].assign(**columns)
    old, new = _favourites(table, "before"), _favourites(table, "after")
    change = (new["gold"] - old["gold"]).sort_values(kind="stable")

    better, worse = int((change > 1e-9).sum()), int((change < -1e-9).sum())
    blocks = [f"{better} of {len(change)} favourites got better, {worse} got worse."]
    gains, losses = change.index[::-1][:count], change.index[:count]
    shown = [("GAIN", p) for p in gains if change[p] > 0]
    shown += [("LOSS", p) for p in losses if change[p] < 0]
    for title, prompt in shown:
        was, now = old.loc[prompt], new.loc[prompt]
        blocks.append(
            f"{title}  PROMPT {_read(was['prompt'])}\n"
            f"  {before:>8}, gold {was['gold']:.2f}: {_line(was['completion'])}\n"
            f"  {after:>8}, gold {now['gold']:.2f}: {_line(now['completion'])}"
        )
    return "\n\n".join(blocks)


def _favourites(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The row of each prompt with the highest value in a column; indexed by prompt_id."""
    return table.loc[table.groupby("prompt_id")[column].idxmax()].set_index("prompt_id")


def rank_changes(
    pool: pd.DataFrame, scores: dict[str, np.ndarray], before: str, after: str, count: int = 6
) -> str:
    """On the `count` prompts where two rewards differ most, the completion that rose and the one
    that fell furthest, as plain text. Which of them is better is for the reader to say.
    """
    table = pool[["prompt_id", "prompt", "completion"]].copy()
    for name in (before, after):
        by_prompt = pd.Series(scores[name], index=pool.index).groupby(pool["prompt_id"])
        table[name] = by_prompt.rank(ascending=False, method="first")
    table["rise"] = table[before] - table[after]
    rises = table.groupby("prompt_id")["rise"]
    span = (rises.max() - rises.min()).sort_values(ascending=False, kind="stable")

    # the favourite stays where the first of one ranking is the first of the other
    ranked_before = table.loc[table[before] == 1].set_index("prompt_id")
    same = int((ranked_before[after] == 1).sum())
    differ = int((span > 0).sum())
    blocks = [
        f"{same} of {len(span)} prompts keep their favourite; the rankings of {differ} differ."
    ]
    for prompt in span.index[:count][span[:count] > 0]:
        part = table[table["prompt_id"] == prompt]
        rose, fell = part.loc[part["rise"].idxmax()], part.loc[part["rise"].idxmin()]
        lines = [f"PROMPT {_read(part['prompt'].iloc[0])}"]
        for title, row in (("ROSE", rose), ("FELL", fell)):
            move = f"from {row[before]:.0f} to {row[after]:.0f} of {len(part)}"
            lines.append(f"  {title} {move}: {_line(row['completion'])}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _read(prompt: str) -> str:
    """A prompt as people read it."""
    return printable(plain(prompt))


def _line(text: str) -> str:
    """A completion on one line, control characters made visible: model output is data, whatever
    it holds.
    """
    parts = [part.strip() for part in text.splitlines()]
    return printable(" / ".join(part for part in parts if part))
