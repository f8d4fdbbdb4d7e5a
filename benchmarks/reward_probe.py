"""The reward probe: fit on 50,000 pairs of 1,152 features and score a million completions,
against scikit-learn on pair differences.

    python benchmarks/reward_probe.py [--pairs 50000]

scikit-learn is asked for the same optimum: no intercept, C = 1 / l2, both orders of a pair being
the same observation. Equal loss is checked.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from race import growth, race, ratios, release
from sklearn.linear_model import LogisticRegression

from shfcas_lib import rewards

FEATURES, N, L2 = 1152, 8, 300.0


class Data:
    """Completions with correlated features, and noisy preferences between them by a hidden linear
    reward.
    """

    def __init__(self, pairs: int):
        generator = np.random.default_rng()
        prompts = pairs // N
        mixing = generator.normal(size=(64, FEATURES))
        features = (
            generator.normal(size=(prompts * N, 64)) @ mixing / 8
            + generator.normal(size=(prompts * N, FEATURES))
        ).astype(np.float32)
        hidden = generator.normal(size=FEATURES) / 30
        prompt = np.repeat(np.arange(prompts), pairs // prompts)[:pairs]
        i = generator.integers(0, N, len(prompt))
        j = (i + generator.integers(1, N, len(prompt))) % N
        margin = (features[prompt * N + i] - features[prompt * N + j]) @ hidden
        self.pool = pd.DataFrame(
            {
                "prompt_id": np.repeat(np.arange(prompts), N),
                "index": np.tile(np.arange(N), prompts),
                "features": list(features),
            }
        )
        self.preferences = pd.DataFrame(
            {
                "prompt_id": prompt,
                "i": i,
                "j": j,
                "label": (generator.random(len(prompt)) < 1 / (1 + np.exp(-margin))).astype(float),
            }
        )

    def head(self, pairs: int) -> pd.DataFrame:
        return self.preferences.head(pairs)


def ours(data: Data, pairs: int) -> rewards.Probe:
    return rewards.fit_probe(data.pool, data.head(pairs), L2)


def theirs(data: Data, pairs: int) -> np.ndarray:
    """scikit-learn on the same columns; making them is in its time, too."""
    preferences = data.head(pairs)
    first, second = (rewards.locate(data.pool, preferences, side) for side in ("i", "j"))
    columns = rewards.design(*_standard(data.pool, np.union1d(first, second)))
    model = LogisticRegression(C=1 / L2, fit_intercept=False, tol=1e-6, max_iter=1000)
    return model.fit(columns[first] - columns[second], preferences["label"]).coef_[0]


def _standard(pool: pd.DataFrame, used: np.ndarray):
    features = np.stack(pool["features"].to_numpy()).astype(np.float64)
    return (features, *rewards.standardised(features[used])[1:])


def loss(data: Data, pairs: int, weight: np.ndarray) -> float:
    preferences = data.head(pairs)
    first, second = (rewards.locate(data.pool, preferences, side) for side in ("i", "j"))
    columns = rewards.design(*_standard(data.pool, np.union1d(first, second)))
    margin = (columns[first] - columns[second]) @ weight
    return float(
        np.logaddexp(0, margin).sum()
        - preferences["label"].to_numpy() @ margin
        + L2 / 2 * weight @ weight
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=50_000)
    pairs = parser.parse_args().pairs
    data = Data(pairs)
    losses = {
        "ours": loss(data, pairs, ours(data, pairs).weight),
        "scikit-learn, lbfgs": loss(data, pairs, theirs(data, pairs)),
    }
    contestants = {
        "ours": lambda: ours(data, pairs) and None,
        "scikit-learn, lbfgs": lambda: theirs(data, pairs)[:0].sum() or None,
    }
    table = ratios(race(contestants, warm=False), "ours")
    release(
        "reward_probe",
        table.assign(
            **{"loss over the lowest": table["contestant"].map(losses) / min(losses.values()) - 1}
        ),
    )
    release(
        "probe_growth",
        growth(
            "fit, pairs",
            [pairs // 8, pairs // 4, pairs // 2, pairs],
            lambda size: ours(data, size),
            rounds=1,
        ),
    )
    release(
        "probe_scoring",
        growth(
            "score, completions",
            [125_000, 250_000, 500_000, 1_000_000],
            scoring(ours(data, pairs)),
            rounds=1,
        ),
    )


def scoring(probe: rewards.Probe):
    """Scores that many completions; the pool's rows share a few feature vectors, which the probe
    cannot know.
    """
    vectors = list(np.random.default_rng().normal(size=(4096, FEATURES)).astype(np.float32))

    def score(completions: int) -> None:
        pool = pd.DataFrame(
            {"features": (vectors * (completions // len(vectors) + 1))[:completions]}
        )
        assert np.isfinite(probe.score(pool)).all()

    return score


if __name__ == "__main__":
    main()
