"""A small run whose loop waits for a team, for the tests of files that travel. No language
model."""

import pandas as pd

from shfcas_lib import loop, refine
from shfcas_lib.annotators.people import load_annotator
from shfcas_lib.params import reading
from shfcas_lib.storage import runs

# Texts that a file format, a spreadsheet or a browser may stumble over.
NASTY = [
    "=1+1",
    "+49 30",
    "-2",
    "@SUM(A1)",
    "'quoted",
    "''",
    "\tx",
    "\rx",
    "\n=x",
    "a;=cmd|' /C calc'!A0",
    "- a\n- b\n+ c",
    'say "hi", she said',
    "é漢字🙂\u200d",
    "\u202eright to left",
    "<script>alert(1)</script>",
    "<b>&amp;</b> $left $prompt",
    "https://example.org/x.png",
    "\\n",
    " =x",
    "two\r\nlines",
    "",
    " ",
    "＝1",
    "[ref]",
    "{{ x }}",
    "code:\n```\nif a < b && c:\n```",
]


def settings(**changes):
    values = {
        "run": "team",
        "feedback": {"kind": "team"},
        "reward": {"l2": 10.0},
        "evaluation": {"replicates": 0},
        "selection": {"budget": 16, "rounds": 2, "strategies": ["shf_cas", "random"]},
    }
    return reading.validate(values | changes, "test")


def start(pool, **changes):
    """A run with its pool on disk, and a function that spends the budget of a strategy."""
    asked = settings(**changes)
    run = runs.open_run(asked)
    texts = [NASTY[k] if k < len(NASTY) else f"text {k}" for k in range(len(pool))]
    rest = (
        pool.iloc[::-1]
        .reset_index(drop=True)
        .assign(completion=texts, prompt=[f"=request of\n{p}" for p in pool["prompt_id"][::-1]])
    )
    rest = rest[rest["prompt_id"] >= "p15"].reset_index(drop=True)
    train = pool[pool["prompt_id"] < "p15"].reset_index(drop=True)
    run.stage("02_conflict").table("pool_feedback", lambda: rest)
    biased = pd.DataFrame(
        {
            "prompt_id": [f"p{k:02d}" for k in range(15)],
            "i": 0,
            "j": 1,
            "label": [float(k % 2) for k in range(15)],
        }
    )
    prompts = pd.DataFrame({"prompt_id": pool["prompt_id"].unique(), "harmful": False})
    stage = run.stage("03_feedback")
    proxy = refine.fit(asked.reward, train, biased, 0)
    setting = loop.Setting(asked, 0, prompts, train, rest, biased, proxy)
    return run, lambda name="shf_cas": loop.run_rounds(
        name, setting, load_annotator(asked.feedback, None, 0, stage.folder), stage / name
    )
