"""A run whose notebooks 01 and 02 are finished, made in a second from random features: what a
person at the screen starts from."""

import numpy as np
import pandas as pd

from shfcas_lib.data.prompts import split
from shfcas_lib.experiment import stages
from shfcas_lib.params import reading
from shfcas_lib.storage import runs
from shfcas_lib.tasks.embedded import embedded_prompts

# What a model might write to harm whoever reads it, or to hide something from them. The browser
# test looks for the flag.
SCRIPTS = [
    "<script>window.shfcas_hacked = 1</script>",
    (
        "<img src=x onerror='window.shfcas_hacked = 2'> <b>bold</b> &amp; <a"
        " href='javascript:window.shfcas_hacked=3'>click</a>"
    ),
    (
        "**markdown** [link](javascript:window.shfcas_hacked=4) $\\href{javascript:1}{x}$ <svg"
        " onload='window.shfcas_hacked = 5'>"
    ),
]
HIDDEN = [
    "\x1b[31mred\x1b[0m \x07bell \x00null \x7fdelete",
    "zero\u200bwidth \ufeff joined\u2060here soft\u00adhyphen \u3164filler",
    "user\u202etxt.exe\u202c and \u2066isolated\u2069 \u200e\u200f marks",
]
HONEST = [
    "def f(x):\n\treturn x   # three spaces\n\n",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1ee \u2764\ufe0f",
    (
        "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd."
        " \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    ),
]
# the four completions of every prompt
HOSTILE = [
    "\n".join(SCRIPTS),
    "\n".join(HIDDEN),
    "\n".join(HONEST),
    "long " * 20_000,
]


def settings(**changes):
    """Parameters of a run in which a person answers twelve comparisons in two rounds."""
    values = {
        "run": "people",
        "prompts": {"n": 30},
        "sampling": {"n": 4},
        "gold": {"kind": "tiny_gold:vowels"},
        "reward": {"l2": 10.0},
        "selection": {"strategies": ["shf_cas"], "budget": 12, "rounds": 2},
        "feedback": {"kind": "person"},
        "evaluation": {"replicates": 0},
    }
    return values | changes


def make(values, hostile=True):
    """Write the first two stages of the run into the runs folder; returns (run, setting)."""
    wanted = reading.validate(values, "tiny run")
    generator = np.random.default_rng(0)
    prompts = split(embedded_prompts("helpfulness").head(30), wanted.split, 0)
    rows = [
        (p, i, text, f"text {i}", generator.normal(size=16), generator.normal())
        for p, text in zip(prompts["prompt_id"], prompts["prompt"], strict=True)
        for i in range(4)
    ]
    pool = pd.DataFrame(
        rows, columns=["prompt_id", "index", "prompt", "completion", "features", "logp"]
    ).sort_values(["prompt_id", "index"], ignore_index=True)
    where = pool["prompt_id"].map(dict(zip(prompts["prompt_id"], prompts["split"], strict=True)))
    train, asked = (pool[where == name].reset_index(drop=True) for name in ("train", "feedback"))
    if hostile:
        asked["completion"] = [HOSTILE[k] for k in asked["index"]]
    gold = train[["prompt_id", "index"]].assign(gold=np.stack(train["features"])[:, 0])
    run = runs.open_run(wanted)
    first, second = run.stage("01_proxy"), run.stage("02_conflict")
    tables = {"prompts": prompts, "pool_train": train, "gold_train": gold}
    for name, table in tables.items():
        first.table(name, lambda table=table: table)
    second.table("pool_feedback", lambda: asked)
    stages.proxy_and_ceiling(run, None)
    for stage in (first, second):
        stage.metrics({"made": "by a test"})
    return run, stages.setting(run)
