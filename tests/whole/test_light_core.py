"""The core needs no language model: from conflict to a refined policy and its intervals, where
none of the heavy packages can be imported."""

import subprocess
import sys

from project import ROOT, environment

PATH = '''
import sys

REFUSED = {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate",
           "matplotlib", "seaborn"}


class Refuses:
    """Python's own error, and on whose behalf the package was asked for."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            frame, chain = sys._getframe(1), []
            while frame:
                module = frame.f_globals.get("__name__", "")
                if module.partition(".")[0] == "shfcas_lib" and module not in chain:
                    chain.append(module)
                frame = frame.f_back
            raise ModuleNotFoundError(f"{' > '.join(reversed(chain))} > {name}", name=name)


sys.meta_path.insert(0, Refuses)

from pathlib import Path

import numpy as np
import pandas as pd

import shfcas_lib as shf
from shfcas_lib.analysis import stats
from shfcas_lib.feedback import SimulatedHuman
from shfcas_lib.params import reading
from shfcas_lib.strategies import Fitted

folder = Path(sys.argv[1])
params = reading.validate({"task": "helpfulness", "gold": {"kind": "task"}}, "a test")
generator = np.random.default_rng(0)
features = generator.normal(size=(120, 8))
pool = pd.DataFrame(
    {
        "prompt_id": np.repeat([f"p{k:02d}" for k in range(30)], 4),
        "index": np.tile(range(4), 30),
        "prompt": "Name a bird.",
        "completion": [f"a wren and {k} more" for k in range(120)],
        "logp": generator.normal(-40, 8, 120),
        "features": list(features),
    }
)
gold = features[:, 0]


def gold_reward(rows):
    return gold[[int(text.split()[3]) for text in rows["completion"]]]


pairs = pd.DataFrame(
    [(f"p{k:02d}", 0, 1, float(k % 2)) for k in range(30)],
    columns=["prompt_id", "i", "j", "label"],
)
proxy = shf.fit(params.reward, pool, pairs, 0)
conflict = shf.conflict_table(pool, proxy.score(pool))
belief = shf.believe(pool, pairs, params.reward.l2)
for strategy in shf.STRATEGIES:
    given = (proxy, pool, pairs.assign(weight=1.0), params.reward.l2, pool)
    fitted = Fitted(*given, pairs.head(0), belief, None, params.policy.beta)
    drawn = shf.rng(0, f"selection/{strategy}")
    assert len(shf.select(strategy, conflict, 20, drawn, params.selection, None, fitted)) == 20
asked = shf.select("shf_cas", conflict, 40, shf.rng(0, "selection"), params.selection)
with shf.LabelStore(folder / "labels.sqlite") as store:
    labels = shf.ask(asked, pool, SimulatedHuman(gold_reward), store)
refined = shf.update(params.reward, shf.refine.Data(pool, pairs, labels), 0)
weights = {
    name: shf.tilt(pool["prompt_id"], reward.score(pool), 0.2)
    for name, reward in (("proxy", proxy), ("refined", refined))
}
expected = {
    name: pd.Series(weight * gold).groupby(pool["prompt_id"]).sum()
    for name, weight in weights.items()
}
gain = stats.mean_interval((expected["refined"] - expected["proxy"]).to_numpy(), shf.rng(0, "gain"))
assert gain.low > 0, gain  # forty honest answers mend a proxy of coin flips
(folder / "shf_cas").mkdir()
refined.save(folder / "shf_cas")
again = shf.refine.read(params.reward, folder / "shf_cas")
np.testing.assert_allclose(again.score(pool), refined.score(pool))
assert not REFUSED & set(sys.modules), REFUSED & set(sys.modules)
print("ok")
'''


def test_conflict_to_interval_without_the_heavy_packages(tmp_path):
    said = subprocess.run(
        [sys.executable, "-c", PATH, str(tmp_path)],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert said.stdout == "ok\n", said.stderr[-3000:]
