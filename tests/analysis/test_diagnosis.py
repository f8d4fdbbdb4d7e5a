"""Whether conflict knows where the proxy is wrong, against loops over pairs and planted answers."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from shfcas_lib.analysis import diagnosis, figures, resamples, stats
from shfcas_lib.conflict import conflict_table

ERROR = "|PACS| with the proxy's error on a completion, Spearman"
AREA = "wrong pairs found by |PACS|, area under ROC"
MARGIN = "wrong pairs found by the proxy's margin (small first), area under ROC"


def world(policy, wrong=1.0, prompts=50, seed=0):
    """(conflict, gold) of 6 completions a prompt. Gold and the proxy's error are independent, the
    proxy is gold plus `wrong` times the error; policy: gold and the error to log-probability,
    plus noise."""
    draw = np.random.default_rng(seed)
    gold, error, noise = draw.normal(size=(3, 6 * prompts))
    ids = np.repeat([f"p{k:03d}" for k in range(prompts)], 6)
    pool = pd.DataFrame({"prompt_id": ids, "index": np.tile(range(6), prompts)})
    conflict = conflict_table(pool.assign(logp=policy(gold, error) + noise), gold + wrong * error)
    return conflict, pool.assign(gold=gold)


@pytest.fixture
def knowing():
    """The policy likes what gold likes, so that conflict with it shows the proxy's error."""
    return world(lambda gold, error: 3 * gold)


@pytest.fixture
def ignorant():
    """The policy's log-probabilities are noise."""
    return world(lambda gold, error: 0)


def test_pair_errors_by_loops_over_pairs(knowing):
    conflict, gold = knowing
    some = gold.assign(gold=gold["gold"].round())  # ties, which are left out
    found = diagnosis.pair_errors(conflict.sample(frac=1, random_state=0), some)
    rows = []
    for prompt, part in conflict.merge(some).groupby("prompt_id"):
        for one, other in combinations(part.to_dict("records"), 2):
            if one["gold"] == other["gold"]:
                continue
            wrong = (one["reward"] > other["reward"]) != (one["gold"] > other["gold"])
            pacs = abs(one["pacs"]) + abs(other["pacs"])
            apart = abs(one["pacs"] - other["pacs"])
            margin = -abs(one["reward"] - other["reward"])
            rows.append((prompt, wrong, pacs, apart, one["kendall"], margin))
    names = ["prompt_id", "wrong", "pacs", "pacs_difference", "kendall", "margin"]
    pd.testing.assert_frame_equal(found, pd.DataFrame(rows, columns=names))


def test_a_policy_that_knows_gold_is_above_its_placebo(knowing):
    table = diagnosis.predicts_error(*knowing, 0).set_index("measure")
    assert len(table) == 6 and table.index[-1] == MARGIN
    for name in table.index[:5]:
        row = table.loc[name]
        assert row["value"] > row["chance_high"] > row["chance"] > row["chance_low"]
        assert row["above"] == pytest.approx(row["value"] - row["chance"])
    pacs = table.loc[[ERROR, AREA]]
    assert (pacs["above_low"] > 0.05).all() and (pacs["verdict"] == "higher").all()
    np.testing.assert_allclose(table["p_holm"], stats.holm(table["p"]))


def test_chance_is_not_zero_where_both_sides_hold_the_reward():
    """|PACS| and the error of a bad proxy go together although the policy is noise: a Spearman
    that is clear of 0, and not above its placebo."""
    bad = world(lambda *_: 0, wrong=50.0, prompts=120)
    table = diagnosis.predicts_error(*bad, 0).set_index("measure")
    error = table.loc[ERROR]
    assert error["low"] > 0 and error["chance_low"] > 0.05
    assert (table.drop(index=MARGIN)["verdict"] == "not significant").all()


def test_chance_is_not_one_half_where_large_rewards_are_right(ignorant):
    """Of a good proxy the area under ROC of |PACS| lies below one half, and so does chance."""
    table = diagnosis.predicts_error(*ignorant, 0).set_index("measure")
    area = table.loc[AREA]
    assert area["high"] < 0.5 and area["chance_high"] < 0.5
    assert (table.drop(index=MARGIN)["verdict"] == "not significant").all()


def test_the_margin_has_no_log_probability_and_its_chance_is_one_half(ignorant):
    row = diagnosis.predicts_error(*ignorant, 0).set_index("measure").loc[MARGIN]
    assert (row["chance"], row["chance_low"], row["chance_high"]) == (0.5, 0.5, 0.5)
    assert row["above"] == pytest.approx(row["value"] - 0.5) and row["verdict"] == "higher"


def test_without_intervals_the_numbers_are_the_same_and_the_seed_decides_them(knowing):
    table, short = diagnosis.predicts_error(*knowing, 3), diagnosis.error_measures(*knowing, 3)
    assert list(short) == ["measure", "value", "chance"]
    pd.testing.assert_frame_equal(short, table[["measure", "value", "chance"]])
    pd.testing.assert_frame_equal(diagnosis.error_measures(*knowing, 3), short)
    other = diagnosis.error_measures(*knowing, 4)
    pd.testing.assert_series_equal(other["value"], short["value"])
    assert (other["chance"][:5] != short["chance"][:5]).all()


def test_above_is_an_interval_of_paired_resamples(knowing):
    """It is narrower than the two intervals put together, because both share their prompts."""
    found = diagnosis.predicts_error(*knowing, 0).set_index("measure").loc[ERROR]
    drawn = resamples.draw(knowing[0]["prompt_id"], np.random.default_rng(0), 10)
    assert len(drawn.counts) == 11
    apart = found["high"] - found["low"] + found["chance_high"] - found["chance_low"]
    assert 0 < found["above_high"] - found["above_low"] < apart


def test_the_roc_table_has_the_areas_of_the_measures(knowing, tmp_path):
    table = diagnosis.predicts_error(*knowing, 0).set_index("measure")
    roc = diagnosis.roc_table(*knowing, 0)
    area = roc.groupby(["score_name", "placebo"])["area"].first()
    for score, name in {"|PACS| of the pair": "|PACS|", "K of the prompt": "K"}.items():
        row = table.loc[f"wrong pairs found by {name}, area under ROC"]
        assert area[score, False] == pytest.approx(row["value"])
        assert area[score, True] == pytest.approx(row["chance"])
    margin = "proxy's margin (small first)"
    assert area[margin, False] == pytest.approx(table.at[MARGIN, "value"])
    assert (margin, True) not in area
    for _, part in roc.groupby(["score_name", "placebo"]):
        points = part[["false_positive_rate", "true_positive_rate"]]
        assert points.iloc[0].tolist() == [0, 0] and points.iloc[-1].tolist() == [1, 1]
        assert (points.diff().dropna() >= 0).all(axis=None)
    legend = figures.error_roc(roc, tmp_path / "roc").axes[0].get_legend().get_texts()
    said = [text.get_text().strip() for text in legend]
    assert [text.rpartition(":")[0] for text in said] == [
        "|PACS| of the pair",
        "shuffled",
        "K of the prompt",
        "shuffled",
        margin,
    ]


def test_gold_that_tells_nothing_apart_leaves_the_question_open(ignorant, capsys, tmp_path):
    conflict, gold = ignorant
    flat = gold.assign(gold=1.0)
    table = diagnosis.predicts_error(conflict, flat, 0)
    assert table["value"][1:].isna().all() and (table["verdict"] == "not significant").all()
    roc = diagnosis.roc_table(conflict, flat, 0)
    assert roc is None and figures.error_roc(roc, tmp_path / "roc") is None
    assert "it needs gold that tells completions apart" in capsys.readouterr().out


def test_the_text_shows_every_number_beside_its_placebo(knowing):
    table = diagnosis.predicts_error(*knowing, 0)
    text = diagnosis.as_text(table)
    assert list(text) == ["value", "placebo", "above it", "verdict"]
    assert all(f"<th>{name}</th>" in text.to_html() for name in table["measure"])
    row, shown = table.iloc[2], text.iloc[2]
    assert shown["placebo"] == str(stats.Interval(*row[["chance", "chance_low", "chance_high"]]))
    assert shown["above it"] == str(stats.Interval(*row[["above", "above_low", "above_high"]]))
