"""How wrong is the proxy: coverage over planted runs, whatever the strategy and whenever somebody
looks; what the report says and when it says nothing."""

import dataclasses
import json
import re
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import tiny_run
from project import ROOT

from shfcas_lib import loop, refine, trust
from shfcas_lib.analysis import sequence, stopping
from shfcas_lib.feedback import SimulatedHuman
from shfcas_lib.rewards import Published, locate

RUNS = 500
LOST = np.log(20)  # a bettor who has this much says that the share is not 5% to be the truth


def population(prompts, share, ties=0.0, n=4):
    """All pairs of some prompts' completions, of which chance leaves `ties` undecided and a reward
    orders `share` of the others as labelled: pool, pairs with right and decided."""
    ids = [f"p{k:03d}" for k in range(prompts)]
    pool = pd.DataFrame({"prompt_id": np.repeat(ids, n), "index": np.tile(range(n), prompts)})
    pairs = pd.DataFrame(
        [(p, i, j) for p in ids for i, j in combinations(range(n), 2)],
        columns=["prompt_id", "i", "j"],
    )
    generator = np.random.default_rng(7)
    order = generator.permutation(len(pairs))
    decided = order >= round(ties * len(pairs))
    right = np.zeros(len(pairs), bool)
    some = np.flatnonzero(decided)
    right[some[: round(share * len(some))]] = True
    return pool, pairs.assign(right=right, decided=decided)


def asked(pairs, budgets, share, seed):
    """What a strategy asks that finds the reward's errors first, beside a random share, as
    `stopping.asked` gives it: all answered."""
    generator = np.random.default_rng(seed)
    right, decided = pairs["right"].to_numpy(), pairs["decided"].to_numpy()
    left, rows, drawn = np.argsort(right, kind="stable"), [], []  # errors first
    for budget in budgets:
        chance = generator.permutation(left)[: round(share * budget)]
        rest = left[~np.isin(left, chance)]
        part = np.concatenate([chance, rest[: budget - len(chance)]])
        left = left[~np.isin(left, part)]
        place = generator.permutation(budget)
        rows.append(part[place])
        drawn.append(place < len(chance))
    rows, number = np.concatenate(rows), np.repeat(np.arange(len(budgets)) + 1, budgets)
    return pd.DataFrame(
        {
            "pair": rows,
            "right": right[rows],
            "drawn": np.concatenate(drawn),
            "round": number,
            "answered": True,
            "label": np.where(decided[rows], 1.0, 0.5),
        }
    )


def draws_of(pool, table):
    pairs = pool.groupby("prompt_id").size()
    return stopping.drawn(
        int((pairs * (pairs - 1) // 2).sum()), table, table["right"].to_numpy(float)
    )


def _width(interval):
    return interval.high - interval.low


def truth(pairs):
    return pairs.loc[pairs["decided"], "right"].mean()


def missed(pool, pairs, budgets, share):
    """How often the truth is out at one moment at least, over planted runs; and the estimates."""
    lost, values = 0, []
    for seed in range(RUNS):
        draws = draws_of(pool, asked(pairs, budgets, share, seed))
        lost += sequence.log_capital(draws, np.array([truth(pairs)])).max() >= LOST
        values.append(sequence.estimate(draws))
    return lost / RUNS, np.array(values)


@pytest.mark.parametrize("right", [0.05, 0.5, 0.95])
@pytest.mark.parametrize(
    ("prompts", "budgets", "share"),
    [(200, [40, 40], 0.2), (200, [80], 1.0), (17, [20, 20, 20], 0.2)],
    ids=["chosen pairs", "all random", "a small pool"],
)
def test_the_truth_is_covered_at_every_moment_of_95_runs_in_100(right, prompts, budgets, share):
    pool, pairs = population(prompts, right)
    lost, values = missed(pool, pairs, budgets, share)
    assert lost <= 0.05
    error = values.std(ddof=1) / np.sqrt(RUNS)
    assert abs(values.mean() - truth(pairs)) < 3.5 * error, "the estimate is unbiased"


def test_ties_and_skips_are_covered_too():
    pool, pairs = population(100, 0.7, ties=0.6)
    lost, values = missed(pool, pairs, [40, 40], 0.5)
    assert lost <= 0.05 and abs(values.mean() - truth(pairs)) < 0.02


def test_the_gain_of_a_later_reward_is_covered_on_what_was_not_asked_before():
    """Judged by labels of the second round alone; most pairs are ordered alike by both rewards."""
    pool, pairs = population(100, 0.6, ties=0.2)
    generator = np.random.default_rng(3)
    differ = generator.random(len(pairs)) < 0.3
    better = pairs["right"].where(~differ, ~pairs["right"] & (generator.random(len(pairs)) < 0.9))
    differ &= (better != pairs["right"]).to_numpy()
    change, lost, widths = better.to_numpy(float) - pairs["right"].to_numpy(float), 0, []
    for seed in range(RUNS):
        table = asked(pairs, [40, 60], 0.4, seed)
        rest = np.setdiff1d(np.arange(len(pairs)), table["pair"][table["round"] == 1])
        true = (change * pairs["decided"].to_numpy())[rest].mean()
        where = table["pair"].to_numpy()
        found = stopping.gain(len(pairs), differ.sum(), table, change[where], differ[where], 2)
        lost += not found.low <= true <= found.high
        if seed < 50:  # against all pairs as if in doubt
            every, value = table.assign(label=1.0), change[where] * table["label"].ne(0.5)
            draws = stopping.drawn(len(pairs), every, value.to_numpy(), 2, (-1.0, 1.0))
            widths.append([_width(found), _width(sequence.interval(draws))])
    assert lost / RUNS <= 0.05
    doubt, direct = np.mean(widths, 0)
    assert doubt < 0.85 * direct, "pairs that the rewards order alike are in no doubt"


def test_a_gain_that_is_known_already_is_its_value():
    """The one pair that two rewards order differently was asked, by a strategy's choice."""
    columns = ["round", "drawn", "answered", "label"]
    table = pd.DataFrame([(1, True, True, 1.0), (2, False, True, 1.0)], columns=columns)
    differ, change = np.array([False, True]), np.array([0.0, -1.0])
    found = stopping.gain(41, 1, table, change, differ, 2)
    assert found.low == found.value == found.high == pytest.approx(-1 / 40)


def test_labels_that_a_strategy_chose_would_be_no_fair_sample():
    """What the 500 runs above would find if chosen pairs passed as drawn ones."""
    pool, pairs = population(200, 0.7)
    out = 0
    for seed in range(50):
        table = asked(pairs, [40, 40], 0.2, seed).assign(drawn=True)
        out += sequence.log_capital(draws_of(pool, table), np.array([0.7])).max() >= LOST
    assert out == 50


def test_what_is_seen_midway_is_the_beginning_of_what_is_seen_later():
    """Every look is one moment of the same sequence, which is covered as a whole."""
    pool, pairs = population(30, 0.6, ties=0.2)
    table = asked(pairs, [20, 20], 0.3, 1)
    whole = draws_of(pool, table)
    for count in range(0, 41):
        early = table.assign(answered=np.arange(40) < count)
        early["label"] = early["label"].where(early["answered"])
        if count <= 20:  # the second round is not chosen yet
            early = early[early["round"] == 1]
        some = draws_of(pool, early)
        assert len(some) == (table["drawn"] & (np.arange(40) < count)).sum()
        assert (some.before == whole.before[: len(some)]).all()
        assert some.now[0] == count


def test_a_drawn_pair_that_waits_holds_back_those_behind_it():
    pool, pairs = population(30, 0.6)
    table = asked(pairs, [20], 1.0, 1)
    table["answered"] = np.arange(20) != 7
    assert len(draws_of(pool, table)) == 7


def test_the_interval_is_made_of_the_shares_that_are_not_out():
    pool, pairs = population(40, 0.6, ties=0.1)
    for seed in range(20):
        draws = draws_of(pool, asked(pairs, [30, 30], 0.4, seed))
        found, grid = sequence.interval(draws), np.linspace(0, 1, 1001)
        kept = grid[sequence.log_capital(draws, grid).max(0) < LOST]
        least, most = sequence.certain(draws)
        low, high = max(kept.min(), least), min(kept.max(), most)
        assert found.low <= low <= found.low + 0.006
        assert found.high - 0.006 <= high <= found.high
        assert found.low <= found.value <= found.high


def test_all_pairs_asked_leave_no_doubt():
    pool, pairs = population(10, 0.7, ties=0.2)
    for share in (0.2, 1.0):
        draws = draws_of(pool, asked(pairs, [30, 30], share, 3))
        found = sequence.interval(draws)
        assert found.low == found.value == found.high == pytest.approx(truth(pairs))


def test_the_capital_is_a_fair_game_at_the_truth():
    """Over all orders in which three pairs of four can be drawn, nobody wins on average."""
    pool, pairs = population(4, 0.5, n=2)
    pairs = pairs.assign(right=[True, False, True, True], decided=[True, True, False, True])
    table = pairs.assign(drawn=True, round=1, answered=True)
    table["label"] = np.where(table["decided"], 1.0, 0.5)
    ends = []
    for first in range(4):
        for second in set(range(4)) - {first}:
            draws = draws_of(pool, table.iloc[[first, second]])
            ends.append(np.exp(sequence.log_capital(draws, np.array([2 / 3]))[-1, 0]))
    assert np.mean(ends) == pytest.approx(1.0)


def test_the_forecast_is_near_what_comes():
    pool, pairs = population(200, 0.6)
    forecasts, widths = [], []
    for seed in range(20):
        table = asked(pairs, [100], 0.4, seed)
        some = draws_of(pool, table.assign(answered=np.arange(100) < 50))
        more = len(draws_of(pool, table)) - len(some)
        forecasts.append(sequence.forecast(some, more))
        widths.append(sequence.interval(draws_of(pool, table)))
    width = [np.mean([_width(x) for x in found]) for found in (forecasts, widths)]
    assert width[0] == pytest.approx(width[1], rel=0.1)


def test_the_page_says_how_wide_the_interval_is():
    page = (ROOT / "docs" / "labelling.md").read_text()
    rows = re.findall(r"^\| (65|95)% \| (one in five|all) \|(.*)\|$", page, re.MULTILINE)
    assert len(rows) == 4
    for right, share, told in rows:
        pool, pairs = population(48, int(right) / 100, n=8)
        widths = []
        for seed in range(15):
            table = asked(pairs, [40] * 4, 1.0 if share == "all" else 0.2, seed)
            looks = [draws_of(pool, table.head(count)) for count in (40, 80, 160)]
            widths.append([_width(sequence.interval(draws)) for draws in looks])
        half = 100 * np.mean(widths, 0) / 2
        assert half == pytest.approx([float(w) for w in re.findall(r"± (\d+)", told)], abs=2.5)


# the report


def human_of(setting):
    """A simulated human, who prefers the completion with the larger first feature."""
    features = np.stack(setting.feedback["features"])[:, 0]

    def gold(shown):
        named = pd.DataFrame({"prompt_id": shown["prompt_id"], "i": shown["index"]})
        return features[locate(setting.feedback, named.reset_index(drop=True), "i")]

    return SimulatedHuman(gold)


def finished(strategy, **selection):
    """A run of a strategy over two rounds: setting, folder, table of `stopping.asked`."""
    chosen = {"strategies": [strategy], "budget": 40, "rounds": 2} | selection
    run, setting = tiny_run.make(tiny_run.settings(selection=chosen), hostile=False)
    stage = run.stage("03_feedback") / strategy
    outcome = loop.run_rounds(strategy, setting, human_of(setting), stage)
    return setting, stage.folder, stopping.asked(stage.folder, outcome.labels)


def all_pairs_of(pool, score):
    """Is the first completion of each pair the better one? By (prompt_id, i, j)."""
    table = pool[["prompt_id", "index"]].assign(score=score)
    both = table.merge(table, on="prompt_id", suffixes=("_i", "_j"))
    both = both[both["index_i"] < both["index_j"]]
    both = both.set_index(["prompt_id", "index_i", "index_j"])
    return both["score_i"] > both["score_j"]


def test_the_report_judges_the_proxy_and_the_reward_of_the_round_before(runs_folder):
    setting, folder, table = finished("shf_cas", random_share=0.25)
    assert table["drawn"].tolist().count(True) == 10 and table["answered"].all()
    found = stopping.report(setting, "shf_cas", folder, table)
    assert json.loads(json.dumps(found)) == found
    assert (found["pairs"], found["drawn"]) == (9 * 6, 10)

    # by hand: what the reward of round 1 says of the labels drawn in round 2
    truth = all_pairs_of(setting.feedback, np.stack(setting.feedback["features"])[:, 0])
    reward = refine.read(setting.params.reward, folder / "round_1")
    refined = truth == all_pairs_of(setting.feedback, reward.score(setting.feedback))
    proxy = truth == all_pairs_of(setting.feedback, setting.proxy.score(setting.feedback))
    key = pd.MultiIndex.from_frame(table[["prompt_id", "i", "j"]])
    fresh = ~truth.index.isin(key[table["round"] == 1])
    drawn = key[(table["round"] == 2) & table["drawn"]]
    assert found["refined"]["value"] == pytest.approx(refined[drawn].mean(), abs=0.006)
    assert found["refined"]["low"] <= refined[fresh].mean() <= found["refined"]["high"]
    assert found["differs"] == pytest.approx((refined != proxy).mean())
    gained = refined.astype(float) - proxy
    assert found["gain"]["low"] <= gained[fresh].mean() <= found["gain"]["high"]
    most = (refined != proxy)[fresh].mean()  # pairs that both order alike are in no doubt
    gain = found["gain"]
    assert -most <= gain["low"] <= gain["value"] <= gain["high"] <= most
    assert 0 <= found["changed"] <= 1 and found["narrower"][1] <= found["narrower"][0]

    words = stopping.suggestion(found)
    assert words.startswith("The proxy is right on ") and "; the refined reward, " in words
    assert "by 10 labels drawn by chance" in words
    assert "Another 20 labels are expected to narrow ±" in words
    assert "the last 20 changed the order of" in words


def test_a_proxy_that_is_right_and_one_that_is_wrong_are_told_apart(runs_folder):
    setting, folder, table = finished("random", rounds=1)
    scored = setting.feedback[["prompt_id", "index"]]
    features = np.stack(setting.feedback["features"])[:, 0]
    for sign, low, high in ((1, 0.8, 1), (-1, 0, 0.2)):
        conflict = scored.assign(reward=sign * features)
        conflict.to_parquet(folder / "round_1" / "conflict.parquet")
        found = stopping.report(setting, "random", folder, table)
        assert low <= found["proxy"]["low"] <= found["proxy"]["high"] <= high
        assert found["refined"] is None and "refined" not in stopping.suggestion(found)


def test_labels_that_cannot_say_it_get_a_sentence_and_no_number(runs_folder):
    setting, folder, table = finished("shf_cas")
    found = stopping.report(setting, "shf_cas", folder, table)
    assert set(found) == {"strategy", "needs"}
    words = stopping.suggestion(found)
    assert "selection.random_share" in words and "%" not in words
    mixed = setting.params.feedback.model_copy(update={"kind": "mixed"})
    params = setting.params.model_copy(update={"feedback": mixed})
    shared = dataclasses.replace(setting, params=params)
    assert "person and a judge" in stopping.suggestion(
        stopping.report(shared, "random", folder, table)
    )


def test_too_few_decided_labels_get_a_sentence_and_no_number(runs_folder):
    setting, folder, table = finished("random", rounds=1)
    place = np.arange(len(table))
    for early, count in (
        (table.assign(answered=False, label=np.nan), 0),
        (table.assign(label=0.5), 0),
        (table.assign(label=np.nan), 0),
        (table.assign(answered=place < 4), 4),
        (table.assign(label=table["label"].where(place > 35, 0.5)), 4),
    ):
        found = stopping.report(setting, "random", folder, early)
        assert set(found) == {"strategy", "needs"}
        words = stopping.suggestion(found)
        assert words.endswith(f"so far there are {count}.") and "%" not in words
    assert stopping.report(setting, "random", folder, table.assign(answered=place < 5))["proxy"]
    nothing = stopping.asked(folder / "nowhere", table.assign(answer="first"))
    assert stopping.report(setting, "random", folder / "nowhere", nothing) is None
    assert stopping.suggestion(None) == ""


def test_completions_of_a_trained_policy_are_not_of_the_pool(runs_folder):
    setting, folder, table = finished("random", rounds=2)
    first = table[table["round"] == 1]
    fresh = table[table["round"] == 2].assign(i=lambda t: t["i"] + 100, j=lambda t: t["j"] + 100)
    both = stopping.report(setting, "random", folder, pd.concat([first, fresh]))
    assert both["proxy"] == stopping.report(setting, "random", folder, first)["proxy"]
    assert both["refined"] is None


def test_you_may_stop_where_little_changes():
    found = {
        "strategy": "random",
        "pairs": 1344,
        "drawn": 300,
        "proxy": {"value": 0.6, "low": 0.5, "high": 0.7},
        "refined": None,
        "differs": None,
        "gain": None,
        "narrower": [0.08, 0.075],
        "changed": 0.01,
    }
    assert "you may stop" in stopping.suggestion(found)
    assert "you may stop" not in stopping.suggestion(found | {"changed": 0.03})
    assert "you may stop" not in stopping.suggestion(found | {"narrower": [0.2, 0.15]})


# whom the labels trust, on the screen


def test_the_screen_says_whom_the_labels_trust(runs_folder):
    _, setting = tiny_run.make(tiny_run.settings(), hostile=False)
    ids = setting.feedback["prompt_id"].unique()[:8]
    labels = pd.DataFrame({"prompt_id": ids, "i": 0, "j": 1, "label": [1.0, 0.0] * 4})
    errs = trust.doubt(0, 0)
    said = stopping.believed(setting, labels, errs)
    assert said.startswith("8 decided labels contradict") and said.endswith("of their answers.")
    assert "of what the biased preferences say" in said

    # a trained policy wrote these later; a skipped pair has no label
    later = labels.assign(i=100, j=101)
    skipped = labels.assign(j=2, label=np.nan)
    assert stopping.believed(setting, pd.concat([labels, later, skipped]), errs) == said
    for few in (later, labels.head(4)):
        assert stopping.believed(setting, few, errs) == ""
    assert stopping.believed(setting, labels, trust.doubt(5, 15)) != said


def test_the_screen_says_how_far_labels_believe_a_published_proxy(runs_folder):
    _, setting = tiny_run.make(tiny_run.settings(), hostile=False)
    settings = setting.params.reward.model_copy(update={"proxy": "model:x"})
    params = setting.params.model_copy(update={"reward": settings})
    train, feedback = (
        pool.assign(proxy=np.stack(pool["features"])[:, 0])
        for pool in (setting.train, setting.feedback)
    )
    proxy = Published.on(train)
    setting = dataclasses.replace(
        setting, params=params, train=train, feedback=feedback, proxy=proxy
    )
    assert setting.belief is None
    score = feedback.set_index(["prompt_id", "index"])["proxy"]
    labels = pd.DataFrame({"prompt_id": feedback["prompt_id"].unique()[:8], "i": 0, "j": 1})
    first, second = (
        score[pd.MultiIndex.from_frame(labels[["prompt_id", side]])].to_numpy()
        for side in ("i", "j")
    )
    shares = []
    for label in (first > second, first < second):
        told = labels.assign(label=label.astype(float))
        said = stopping.believed(setting, told, trust.doubt(0, 0))
        shares.append(int(re.search(r"of what the published proxy says \((\d+)%\)", said)[1]))
    assert shares[0] < shares[1]
