"""Runs without gold: a proxy that nobody vouches for, prompts of one's own, people to ask. What
is refused, what is shown, and what it rests on."""

import json
import os
import re
import subprocess
import sys
from itertools import combinations

import cells
import families
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from judge_server import Server
from project import PATHS, ROOT

from shfcas_lib import evaluation, refine
from shfcas_lib.analysis import agreement, examples, figures, stats, summary, without_gold
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.data.prompts import load_prompts
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Reward
from shfcas_lib.sweeps import plan as sweep_plan
from shfcas_lib.tasks.embedded import embedded_prompts

NO_GOLD = {
    "gold": {"kind": "none"},
    "feedback": {"kind": "person"},
    "evaluation": {"replicates": 0},
}
OWN = NO_GOLD | {"preferences": {"file": "pairs.jsonl"}}
PUBLISHED = NO_GOLD | {"reward": {"proxy": "model:some/model"}}


# what goes together


@pytest.mark.parametrize(
    "values",
    [
        OWN,
        PUBLISHED,
        OWN | PUBLISHED,
        OWN | {"feedback": {"kind": "mixed"}},
        OWN | {"feedback": {"kind": "judge"}},
        OWN | {"feedback": {"kind": "team"}},
        OWN
        | {
            "bias": [
                {"kind": "noise", "rate": 0.1},
                {"kind": "attribute", "attribute": "length", "strength": 0.5},
            ]
        },
        OWN | {"policy": {"kind": "dpo"}},
    ],
)
def test_what_needs_no_gold_is_accepted(values):
    assert not reading.validate(values, "test").gold.known


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"gold": {"kind": "none"}},
            (
                "feedback.kind gold needs a gold reward, but gold.kind is none: expected person,"
                " team, judge, mixed or replay"
            ),
        ),
        (
            OWN | {"feedback": {"kind": "mixed", "person": "gold"}},
            (
                "feedback.person gold needs a gold reward, but gold.kind is none: expected person,"
                " team or replay"
            ),
        ),
        (
            NO_GOLD,
            (
                "the proxy would learn from samples that gold compares, but gold.kind is none: give"
                " preferences of your own (preferences.file, source or recipe), or a published"
                " reward model (reward.proxy)"
            ),
        ),
        (
            NO_GOLD | {"bias": [{"kind": "noise", "rate": 0.1}]},
            "the proxy would learn from samples that gold compares",
        ),
        (
            OWN | {"evaluation": {"replicates": 1}},
            (
                "evaluation.replicates needs a gold reward as human and as judge, but gold.kind is"
                " none: set it to 0"
            ),
        ),
        (
            PUBLISHED | {"evaluation": {"replicates": 3}},
            (
                "evaluation.replicates needs a gold reward as human and as judge, but gold.kind is"
                " none: set it to 0"
            ),
        ),
        (
            PUBLISHED | {"bias": [{"kind": "noise", "rate": 0.1}]},
            (
                "reward.proxy is a published model, which no preferences of this run trained: leave"
                " bias empty"
            ),
        ),
    ],
)
def test_what_needs_gold_is_refused_in_one_sentence(values, sentence):
    with pytest.raises(InputError) as caught:
        reading.validate(values, "mine.yaml")
    assert (
        str(caught.value).startswith("mine.yaml: ")
        and sentence in str(caught.value)
        and "\n" not in str(caught.value)
    )


def test_a_sweep_is_refused_because_its_report_compares_by_gold(tmp_path):
    pairs(tmp_path / "pairs.jsonl")
    (tmp_path / "answers.csv").write_text("prompt_id,i,j,answer\n")
    values = OWN | {
        "preferences": {"file": str(tmp_path / "pairs.jsonl")},
        "feedback": {"kind": "replay", "file": str(tmp_path / "answers.csv")},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"sweep": "s", "base": "base.yaml", "cross": {"seed": [0, 1]}})
    )
    with pytest.raises(
        InputError, match="the report of a sweep compares by gold, but gold.kind is none"
    ):
        sweep_plan.compile_plan(tmp_path / "sweep.yaml")


# agreement with labels


def planted_labels(pool, gold, prompts, share=1.0):
    """A label by gold for a share of all pairs of some prompts."""
    truth = dict(zip(zip(pool["prompt_id"], pool["index"], strict=True), gold, strict=False))
    generator = np.random.default_rng(0)
    rows = [
        (p, i, j, float(truth[p, i] > truth[p, j]))
        for p in prompts
        for i, j in combinations(range(6), 2)
        if generator.random() < share
    ]
    return pd.DataFrame(rows, columns=["prompt_id", "i", "j", "label"])


@pytest.fixture
def blind(planted):
    """A proxy that learnt the wrong thing: (pool, gold, its preferences, proxy, settings, prompts
    that may be asked about)."""
    pool, gold = planted
    other = np.stack(pool["features"])[:, 12]
    prompts = list(pool["prompt_id"].unique())
    preferences = planted_labels(pool, other, prompts[:10])
    settings = reading.validate({"reward": {"l2": 20.0}, "evaluation": {"bootstrap": 400}}, "test")
    return (
        pool,
        gold,
        preferences,
        refine.fit(settings.reward, pool, preferences, 0),
        settings,
        prompts[10:],
    )


def test_labels_that_teach_raise_the_agreement_and_the_interval_says_so(blind):
    pool, gold, preferences, proxy, settings, prompts = blind
    labels = {
        "shf_cas": planted_labels(pool, gold, prompts, 0.6),
        "random": planted_labels(pool, gold, prompts, 0.3),
    }
    table = agreement.table(settings, pool, preferences, labels, proxy).set_index(
        ["asked", "reward"]
    )
    assert list(table.index) == [
        (a, r) for a in ("shf_cas", "random") for r in ("proxy", "shf_cas", "random")
    ]
    assert (table.xs("shf_cas", level="reward")["verdict"] == "higher").all() and (
        table.xs("proxy", level="reward")["verdict"] == ""
    ).all()
    gains = table.drop(index="proxy", level="reward")
    np.testing.assert_allclose(gains["p_holm"], stats.holm(gains["p"]))
    assert table.xs("proxy", level="reward")[["p", "p_holm"]].isna().all(axis=None)
    row = table.loc["random", "shf_cas"]
    assert (
        row["labels"] == len(labels["random"])
        and row["low"] < row["value"] < row["high"]
        and 0 < row["gain_low"] < row["gain"] < row["gain_high"]
    )
    assert row["gain"] == pytest.approx(row["value"] - table.at[("random", "proxy"), "value"])


def test_labels_without_rhyme_or_reason_gain_nothing(blind):
    """A reward that may look at the labels it is judged by would agree with every one of them."""
    pool, gold, preferences, proxy, settings, prompts = blind
    noise = np.random.default_rng(3).normal(size=len(gold))
    labels = planted_labels(pool, noise, prompts)
    loose = settings.reward.model_copy(update={"l2": 0.01})
    learnt = refine.fit(loose, pool, refine.merge(preferences, labels, 3.0), 0)
    assert agreement.agrees(learnt, pool, labels).mean() > 0.65
    honest = agreement.cross_validated(loose, pool, preferences, labels, {"labels": labels}, proxy)[
        "labels"
    ].mean()
    assert abs(honest - 0.5) < 0.1


@pytest.mark.parametrize("refinement", ["trust", "merge"])
def test_a_cross_validated_reward_weighs_grades_as_the_refined_one_does(blind, refinement):
    pool, gold, preferences, proxy, settings, prompts = blind
    labels = planted_labels(pool, gold, prompts, 0.3)

    def judged(table, **changes):
        reward = settings.reward.model_copy(update={"refinement": refinement, **changes})
        given = pool, preferences, table, {"labels": table}, proxy
        return agreement.cross_validated(reward, *given)["labels"]

    plain, much = judged(labels), judged(labels.assign(grade=2.0), much_weight=200.0)
    np.testing.assert_array_equal(judged(labels.assign(grade=1.0), much_weight=200.0), plain)
    heavy = much if refinement == "merge" else plain  # trust has no fixed weight
    np.testing.assert_array_equal(judged(labels, feedback_weight=600.0), heavy)
    assert (plain != much).any()


def test_too_few_labels_and_rewards_other_than_a_probe_have_no_estimate(blind, capsys, tmp_path):
    pool, gold, preferences, proxy, settings, prompts = blind
    labels = planted_labels(pool, gold, prompts, 0.3)
    lora = settings.model_copy(update={"reward": Reward(kind="lora")})
    # ties on other prompts say nothing: the interval would be about one prompt
    lonely = labels["prompt_id"] == prompts[0]
    for some, given in (
        (settings, labels.head(9)),
        (settings, labels[lonely]),
        (settings, labels.assign(label=labels["label"].where(lonely, 0.5))),
        (lora, labels),
    ):
        found = agreement.table(some, pool, preferences, {"shf_cas": given}, proxy)
        assert found is None and figures.label_agreement(found, tmp_path / "figure") is None
        assert (
            "figure figure: left out, it needs reward.kind probe, and ten decided labels"
            in capsys.readouterr().out
        )
    assert not list(tmp_path.iterdir())


def test_the_interval_of_a_mean_over_clusters_is_the_general_one():
    generator = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "p": np.repeat([f"p{k}" for k in range(40)], 5),
            "x": np.repeat(generator.normal(size=40), 5) + generator.normal(size=200),
        }
    )
    quick = stats.cluster_mean(table["x"], table["p"], rng(0, "a"), 4000)
    slow = stats.cluster_interval(table, "p", lambda t: t["x"].mean(), rng(0, "b"), 1000)
    rows = stats.mean_interval(table["x"], rng(0, "c"))
    assert (
        quick.value == pytest.approx(slow.value)
        and quick.low == pytest.approx(slow.low, abs=0.05)
        and quick.high == pytest.approx(slow.high, abs=0.05)
    )
    assert quick.high - quick.low > 1.2 * (rows.high - rows.low), "rows of a cluster are alike"


# what is left of the tables


def test_what_needs_no_gold_is_the_same_with_and_without(planted):
    pool, gold = planted
    scores = {
        "proxy": np.stack(pool["features"])[:, 0],
        "shf_cas": np.stack(pool["features"])[:, 1],
    }
    known = evaluation.tilted(pool, gold, scores, 0.5)
    blind = without_gold.claims(pool, scores, 0.5)
    shared = ["policy", "prompt_id", "kl", "kendall", "mean_abs_pacs"]
    pd.testing.assert_frame_equal(known[shared], blind[shared])
    assert set(blind) - set(shared) == {"gain by proxy", "gain by shf_cas"}
    mine = known[known["policy"] == "proxy"]["reward_gain"].to_numpy()
    np.testing.assert_allclose(blind[blind["policy"] == "proxy"]["gain by proxy"], mine, atol=1e-12)
    np.testing.assert_allclose(blind[blind["policy"] == "base"]["gain by proxy"], 0, atol=1e-12)
    settings = reading.validate({}, "test")
    assert {"kl", "gain by shf_cas"} <= set(summary.summarise(blind, settings)["measure"])
    # a verdict on what a reward believes of its own policy would look like evidence
    compared = summary.headline_contrasts(summary.contrasts(blind, settings))["measure"]
    assert set(compared) == {"kl", "kendall", "mean_abs_pacs"}
    judge = scores.pop("shf_cas")
    curve = without_gold.curve(pool, judge, scores, [1.0, 0.5])
    assert set(curve["policy"]) == {"proxy"} and (curve["kl"] > 0).all()
    assert "gold_gain" not in curve and (curve["refined_gain"] < curve["reward_gain"]).all()


def test_changes_count_pairs_and_favourites(planted):
    pool, _ = planted
    settings = reading.validate({"selection": {"strategies": ["shf_cas", "random"]}}, "test")
    first = np.stack(pool["features"])[:, 0]
    table = without_gold.changes(
        pool, {"proxy": first, "random": -first, "shf_cas": 2 * first}, settings
    ).set_index(["reward", "measure"])["value"]
    assert table["shf_cas"].eq(1).all() and table["random"].eq(0).all()


def test_the_completions_whose_rank_changed_most_are_shown(planted):
    pool, _ = planted
    first = np.stack(pool["features"])[:, 0]
    second = first.copy()
    rows = np.flatnonzero(pool["prompt_id"] == "p07")
    worst, best = rows[first[rows].argmin()], rows[first[rows].argmax()]
    second[[worst, best]] = first[[best, worst]]
    text = examples.side_by_side(
        pool, None, {"proxy": first, "shf_cas": second}, "proxy", "shf_cas"
    )
    assert (
        text.startswith("29 of 30 prompts keep their favourite; the rankings of 1 differ.")
        and text.count("PROMPT") == 1
    )
    assert (
        f"ROSE from 6 to 1 of 6: text {worst}" in text
        and f"FELL from 1 to 6 of 6: text {best}" in text
    )


# whole runs


def pairs(path, count=60):
    """Preferences of somebody's own on the embedded prompts, chosen ones being recognisable;
    returns the path as text."""
    prompts = embedded_prompts("helpfulness").head(count)
    generator = np.random.default_rng(0)
    words = "the cat sat on a mat and dog ran in rain good answer honest".split()
    rows = [
        {
            "prompt": p,
            "category": c,
            "chosen": " ".join(generator.choice(words, 6)) + " yes",
            "rejected": " ".join(generator.choice(words, 6)),
        }
        for p, c in zip(prompts["prompt"], prompts["category"], strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answered(run, path):
    """Answers, the longer the better, for every pair of the feedback prompts: what a replay
    reads."""
    pool = pd.read_parquet(run / "02_conflict/pool_feedback.parquet")
    rows = []
    for prompt, part in pool.groupby("prompt_id"):
        for (i, a), (j, b) in combinations(
            zip(part["index"], part["completion"].str.len(), strict=True), 2
        ):
            rows.append((prompt, i, j, "first" if a > b else "second" if a < b else "tie"))
    pd.DataFrame(rows, columns=["prompt_id", "i", "j", "answer"]).to_csv(path, index=False)


def environment(folder):
    return os.environ | {
        "SHFCAS_RUNS": str(folder),
        "PYTHONPATH": PATHS,
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }


def command(folder, *words):
    done = subprocess.run(
        [sys.executable, "-m", "shfcas_lib", *words],
        cwd=ROOT,
        env=environment(folder),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def printed(run, notebook):
    """Everything that the cells of an executed notebook printed or showed as text."""
    cells = nbformat.read(next((run / "notebooks").glob(f"{notebook}*.ipynb")), as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs
    )


def without_a_word_of_gold(run):
    tables = {path.relative_to(run): set(pd.read_parquet(path)) for path in run.rglob("*.parquet")}
    assert len(tables) > 15 and not [
        name
        for name, columns in tables.items()
        if any("gold" in column or column == "win" for column in columns)
    ]
    assert not (run / "01_proxy/clean").exists()


def readme_yaml():
    section = (ROOT / "README.md").read_text().split("## Without gold")[1].split("\n## ")[0]
    return yaml.safe_load(re.search(r"```yaml\n(.*?)```", section, re.DOTALL)[1])


def test_the_readmes_run_on_preferences_of_ones_own_and_answers_from_a_file(
    tiny_model, tmp_path, monkeypatch
):
    """Notebooks 01 and 02 in this process, so that there are answers; then all four under
    Papermill, which find the first two done."""
    answers, run = tmp_path / "answers.csv", tmp_path / "mine"
    answers.write_text("prompt_id,i,j,answer\n")
    values = readme_yaml()
    assert (
        values["gold"] == {"kind": "none"}
        and values["feedback"]["kind"] == "person"
        and values["run"] == "mine"
        and len(values) <= 10
    )
    requests = embedded_prompts("helpfulness")["prompt"].tolist()[60:100]
    pd.DataFrame({"prompt": requests}).to_csv(tmp_path / "prompts.csv", index=False)
    values |= {
        "model": {"source": str(tiny_model), "quantisation": "none"},
        "preferences": values["preferences"] | {"file": pairs(tmp_path / "pairs.jsonl")},
        "prompts": {"file": str(tmp_path / "prompts.csv")},
        "sampling": {"n": 4, "max_new_tokens": 8},
        "selection": values["selection"] | {"budget": 30},
        "feedback": {"kind": "replay", "file": str(answers)},
        "evaluation": {"replicates": 0, "bootstrap": 200},
    }
    monkeypatch.setenv("SHFCAS_RUNS", str(tmp_path))
    cells.run(values, cells.NOTEBOOKS["run"][:2])
    answered(run, answers)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    told = command(tmp_path, "run", str(tmp_path / "mine.yaml"))
    assert (
        "the proxy agrees" in told
        and "evidence that it is better" in told
        and "gold" not in told.split("metrics")[1]
    )
    without_a_word_of_gold(run)
    first = printed(run, "01")
    assert (
        "can this task show anything?: left out, it needs gold" in first
        and "figure attribute_pull: left out, it needs gold, or an attribute" in first
    )
    # a fifth of them did not train it
    assert "given preferences that did not train the proxy, ranked as they say: " in first
    split = pd.read_parquet(run / "01_proxy/prompts.parquet")["split"].value_counts()
    assert split["held_out"] == 12 and split["train"] == 48
    second = printed(run, "02")
    assert (
        "does conflict know where the proxy is wrong?: left out, it needs gold" in second
        and "does conflict know where the proxy is wrong?: left out, it needs 20 pref" in second
        and "figure error_roc: left out, it needs gold" in second
    )
    fourth = printed(run, "04")
    assert (
        "figure gold_reward: left out, it needs gold" in fourth
        and "keep their favourite" in fourth
        and "ROSE from" in fourth
    )
    facts = json.loads((run / "04_evaluation/metrics.json").read_text())
    assert {row["asked"] for row in facts["label_agreement"]} == {"shf_cas", "random"} and len(
        facts["changes"]
    ) == 4
    assert {"gain by proxy", "gain by shf_cas", "kl", "kendall"} <= {
        row["measure"] for row in facts["summary"]
    }
    for name in ("label_agreement", "over_optimisation", "conflict_change"):
        assert (run / f"04_evaluation/figures/{name}.png").stat().st_size > 1000


def test_a_published_proxy_and_a_judge_need_no_preferences_at_all(
    tiny_model, tmp_path, monkeypatch
):
    server = Server()
    for name, value in {"URL": server.url, "MODEL": "tiny-judge", "KEY": "sk-canary"}.items():
        monkeypatch.setenv(f"SHFCAS_JUDGE_{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    head = tmp_path / "reward_model"
    head.mkdir()
    families.save("qwen2", head, head=True)
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump(
            NO_GOLD
            | {
                "run": "published",
                "model": {"source": str(tiny_model), "quantisation": "none"},
                "prompts": {"n": 30},
                "sampling": {"n": 4, "max_new_tokens": 8},
                "reward": {"proxy": f"model:{head}"},
                "selection": {"budget": 24, "rounds": 2, "strategies": ["shf_cas", "random"]},
                "feedback": {"kind": "judge"},
                "evaluation": {"replicates": 0, "bootstrap": 200},
            }
        )
    )
    told = command(tmp_path, "run", str(tmp_path / "mine.yaml"))
    server.close()
    run = tmp_path / "published"
    without_a_word_of_gold(run)
    assert (
        "conflict K with the base policy, shf_cas" in told
        and "how good the proxy is: not known" in printed(run, "01")
    )
    assert not len(pd.read_parquet(run / "01_proxy/preferences_clean.parquet"))
    facts = json.loads((run / "04_evaluation/metrics.json").read_text())
    assert {"proxy", "random", "shf_cas"} == {row["reward"] for row in facts["label_agreement"]}


@pytest.mark.parametrize("published", [False, True])
def test_given_preferences_that_did_not_train_the_proxy_judge_it(
    published, tiny_model, tmp_path, runs_folder
):
    """Of preferences alone, those on feedback and evaluation prompts; under a published proxy,
    those on training prompts."""
    reward = {}
    if published:
        families.save("qwen2", tmp_path, head=True)
        reward = {"proxy": f"model:{tmp_path}"}
    values = OWN | {
        "run": "held",
        "model": {"source": str(tiny_model), "quantisation": "none"},
        "preferences": {"file": pairs(tmp_path / "pairs.jsonl", 40)},
        "sampling": {"n": 3, "max_new_tokens": 6},
        "reward": reward,
        "selection": {"budget": 6},
        "bias": (
            [] if published else [{"kind": "attribute", "attribute": "length", "strength": 0.5}]
        ),
    }
    left = cells.run(values, cells.NOTEBOOKS["run"][:2])
    judged = pd.read_parquet(runs_folder / "held/01_proxy/preferences_judged.parquet")
    prompts = pd.read_parquet(runs_folder / "held/01_proxy/prompts.parquet")
    prompts = prompts.set_index("prompt_id")["split"]
    fresh, learnt = (judged.dropna(subset=[name]) for name in ("proxy", "learnt"))
    where = {"train"} if published else {"feedback", "evaluate"}
    assert set(fresh["prompt_id"].map(prompts)) == where
    assert set(learnt["prompt_id"].map(prompts)) == (set() if published else {"train"})

    facts = json.loads((runs_folder / "held/01_proxy/metrics.json").read_text())
    whole = [row for row in facts["given_pairs"] if row["group"] == "all pairs"]
    found = {row["judge"]: row for row in whole}
    assert set(found) == {"proxy", "length", "policy"} | (set() if published else {"learnt"})
    right = (np.sign(fresh["proxy"]) * np.sign(fresh["label"] - 0.5) + 1) / 2
    assert found["proxy"]["value"] == pytest.approx(right.mean())
    assert found["proxy"]["pairs"] == len(fresh) == (16 if published else 24)
    # the same numbers are the run's accuracy, beside length alone
    shown = {row["reward"]: row for row in facts["pair_accuracy"] if row["group"] == "all pairs"}
    assert set(shown) == {"proxy", "length"}
    assert shown["proxy"]["value"] == found["proxy"]["value"]
    assert (runs_folder / "held/01_proxy/figures/proxy_errors.png").exists()
    assert (runs_folder / "held/01_proxy/figures/attribute_pull.png").exists() != published

    # does conflict know where? of 16 pairs nobody can say
    table = left["given"]
    if published:
        assert table is None
        return
    assert found["proxy"]["value"] > 0.7, "'yes' ends every chosen answer: easy to learn"
    assert found["learnt"]["value"] >= 0.6
    assert list(table["measure"].str.split(" found by ").str[1].str.split(",").str[0]) == [
        "the policy's doubt",
        "|PACS| (0 or 2 each)",
        "the proxy's margin (small first)",
    ]
    facts = json.loads((runs_folder / "held/02_conflict/metrics.json").read_text())
    assert len(facts["predicts_error_given"]) == 3 and not facts["predicts_error"]


@pytest.mark.parametrize(("share", "held"), [(0.0, 0), (0.2, 8), (0.5, 20)])
def test_a_share_of_every_category_is_held_out(share, held, tmp_path):
    requests = embedded_prompts("helpfulness")["prompt"].tolist()[60:80]
    pd.DataFrame({"prompt": requests}).to_csv(tmp_path / "prompts.csv", index=False)
    block = {"file": pairs(tmp_path / "pairs.jsonl", 40), "held_out": share}
    values = OWN | {"preferences": block, "prompts": {"file": str(tmp_path / "prompts.csv")}}
    table = load_prompts(reading.validate(values, "test"))
    sizes = table["split"].value_counts().to_dict()
    assert sizes.pop("held_out", 0) == held and sizes.pop("train") == 40 - held
    assert sizes == {"feedback": 10, "evaluate": 10}
    given = table[table["split"].isin(["train", "held_out"])]
    shares = given["split"].eq("held_out").groupby(given["category"]).sum()
    assert shares.max() - held * given["category"].value_counts().max() / 40 < 1
    again = reading.validate(values | {"seed": 1}, "test")
    other = load_prompts(again).set_index("prompt_id")["split"]
    moved = table.set_index("prompt_id")["split"] != other
    assert not held or (moved & other.eq("held_out")).any(), "another seed holds out others"


def test_of_a_handful_and_under_a_published_proxy_nothing_is_held_out(tmp_path):
    requests = embedded_prompts("helpfulness")["prompt"].tolist()[60:80]
    pd.DataFrame({"prompt": requests}).to_csv(tmp_path / "prompts.csv", index=False)
    more = {"prompts": {"file": str(tmp_path / "prompts.csv")}}
    for count, values in ((10, OWN), (40, OWN | PUBLISHED)):
        block = {"preferences": {"file": pairs(tmp_path / f"{count}.jsonl", count)}}
        table = load_prompts(reading.validate(values | more | block, "test"))
        assert table["split"].eq("train").sum() == count


@pytest.mark.parametrize(
    ("values", "there"),
    [
        ({}, True),
        ({"bias": [{"kind": "noise", "rate": 0.1}]}, True),
        (OWN, False),
        (OWN | {"bias": [{"kind": "noise", "rate": 0.1}]}, False),
        ({"preferences": {"file": "pairs.jsonl"}, "evaluation": {"replicates": 0}}, False),
        (
            {
                "preferences": {"file": "pairs.jsonl"},
                "evaluation": {"replicates": 0},
                "bias": [{"kind": "noise", "rate": 0.1}],
            },
            True,
        ),
    ],
)
def test_the_users_own_labels_are_no_ceiling(values, there):
    """With them and no bias, the reward of the clean labels is the proxy itself."""
    assert reading.validate(values, "test").ceiling == there


def test_trained_policies_are_judged_by_kl_and_both_rewards(tiny_model, tmp_path, runs_folder):
    """A LoRA reward and DPO: what they write is in the table, the agreement is left out, and the
    second round's completions keep indices of their own."""
    answers = tmp_path / "answers.csv"
    answers.write_text("prompt_id,i,j,answer\n")
    values = OWN | {
        "run": "trained",
        "model": {"source": str(tiny_model), "quantisation": "none"},
        "preferences": {"file": pairs(tmp_path / "pairs.jsonl", 30)},
        "sampling": {"n": 3, "max_new_tokens": 6},
        "reward": {"kind": "lora", "epochs": 1},
        "policy": {"kind": "dpo", "pairs": 8},
        "selection": {"budget": 6, "rounds": 1, "strategies": ["shf_cas", "random"]},
        "feedback": {"kind": "replay", "file": str(answers)},
        "evaluation": {"replicates": 0, "bootstrap": 100},
    }
    cells.run(values, cells.NOTEBOOKS["run"][:2])
    answered(runs_folder / "trained", answers)
    left = cells.run(values, cells.NOTEBOOKS["run"][2:])
    table = pd.read_parquet(runs_folder / "trained/04_evaluation/trained_summary.parquet")
    assert set(table["policy"]) == {"base", "proxy", "shf_cas", "random"}
    assert set(table["measure"]) == {"kl", "gain by proxy", "gain by shf_cas", "gain by random"}
    base = table[table["policy"] == "base"].set_index("measure")
    assert np.allclose(base["value"], 0, atol=1e-9)
    assert left["agreed"] is None and "not known" in left["numbers"]["agreement with the labels"]
    without_a_word_of_gold(runs_folder / "trained")
