"""Sweeps: what a file means, what shares what, and that nothing but what changed is run again;
then real sweeps on a tiny model, killed, resumed, with a failing point, with two drivers."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import faces
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from canaries import CANARIES, leaks
from project import ROOT, environment
from tiny_sweep import assert_same, drive, results, write_sweep

from shfcas_lib.base.errors import InputError
from shfcas_lib.params import reading
from shfcas_lib.storage import provenance
from shfcas_lib.sweeps import digests, driver, jobs, report
from shfcas_lib.sweeps import plan as sweep_plan


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(
        "prompts: {n: 60}\nsampling: {n: 4}\nselection: {budget: 12}\nevaluation: {replicates: 2}\n"
    )
    return path


def planned(folder, **values):
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"sweep": "s", "base": "base.yaml", **values}))
    return sweep_plan.compile_plan(path)


def kinds(plan):
    return pd.Series([job["kind"] for job in plan.jobs.values()]).value_counts().to_dict()


# --- what a sweep file means


def test_axes_are_crossed(base, tmp_path):
    plan = planned(tmp_path, cross={"seed": [0, 1], "selection.budget": [5, 10, 15]})
    assert [point["label"] for point in plan.points] == [
        {"seed": s, "budget": b} for s in "01" for b in ("5", "10", "15")
    ]
    budgets = [plan.jobs[point["place"]]["params"]["selection"]["budget"] for point in plan.points]
    assert budgets == [5, 10, 15, 5, 10, 15]


def test_a_case_sets_several_keys_and_set_applies_to_all(base, tmp_path):
    plan = planned(
        tmp_path,
        set={"selection.rounds": 1},
        cross={
            "flaw": {
                "noise": {"bias": [{"kind": "noise", "rate": 0.3}], "selection.budget": 7},
                "none": {"bias": []},
            }
        },
    )
    first, second = (plan.jobs[point["place"]]["params"] for point in plan.points)
    assert (
        first["bias"][0]["rate"],
        first["selection"]["budget"],
        first["selection"]["rounds"],
    ) == (0.3, 7, 1)
    assert (second["bias"], second["selection"]["budget"], second["selection"]["rounds"]) == (
        [],
        12,
        1,
    )


def test_what_a_point_changes_in_a_block_of_set_is_its_own(base, tmp_path):
    plan = planned(
        tmp_path,
        set={"selection": {"budget": 30, "rounds": 1}},
        grids={"a": {"selection.budget": [5]}, "b": {"selection.rounds": [2]}},
    )
    settings = [plan.jobs[point["place"]]["params"]["selection"] for point in plan.points]
    assert [(each["budget"], each["rounds"]) for each in settings] == [(5, 1), (30, 2)]


def test_grids_share_the_common_axes_and_may_replace_them(base, tmp_path):
    plan = planned(
        tmp_path,
        cross={"seed": [0, 1]},
        grids={"a": {"selection.budget": [5]}, "b": {"seed": [0], "selection.rounds": [1, 2]}},
    )
    assert [point["label"] for point in plan.points] == [
        {"grid": "a", "seed": "0", "budget": "5"},
        {"grid": "a", "seed": "1", "budget": "5"},
        {"grid": "b", "seed": "0", "rounds": "1"},
        {"grid": "b", "seed": "0", "rounds": "2"},
    ]


def test_points_share_one_pool_per_sampling_and_one_set_of_cases_per_bias(base, tmp_path):
    plan = planned(
        tmp_path,
        cross={
            "seed": [0, 1],
            "bias": [[], [{"kind": "noise", "rate": 0.2}]],
            "selection.budget": [5, 10],
            "selection.strategies": [["random"], ["shf_cas"]],
        },
    )
    assert kinds(plan) == {"pool": 2, "cases": 4, "point": 16}


def test_points_that_differ_in_n_share_the_largest_pool(base, tmp_path):
    plan = planned(tmp_path, cross={"sampling.n": [3, 4]})
    assert kinds(plan) == {"pool": 1, "cases": 2, "point": 2}
    assert (
        next(job for job in plan.jobs.values() if job["kind"] == "pool")["params"]["sampling"]["n"]
        == 4
    )


def test_two_points_that_mean_the_same_share_one_job(base, tmp_path):
    plan = planned(
        tmp_path, grids={"a": {"selection.budget": [12]}, "b": {"selection.rounds": [2]}}
    )
    assert len(plan.points) == 2 and kinds(plan) == {"pool": 1, "cases": 1, "point": 1}


def test_trained_policies_share_the_pool_and_the_proxies_of_the_closed_form(base, tmp_path):
    plan = planned(
        tmp_path,
        set={"evaluation.replicates": 0, "policy.learning_rate": 1.0e-4},
        cross={"policy.kind": ["dpo", "rso"]},
        grids={
            "trained": {"selection.budget": [5, 6]},
            "closed": {
                "policy.kind": ["tilt"],
                "evaluation.replicates": [1],
                "policy.learning_rate": [5.0e-4],
            },
        },
    )
    assert kinds(plan) == {"pool": 1, "cases": 1, "policies": 4, "point": 1}


def test_a_point_with_a_trained_reward_is_a_whole_run(base, tmp_path):
    plan = planned(
        tmp_path,
        set={"evaluation.replicates": 0, "reward.kind": "lora"},
        cross={"policy.kind": ["tilt", "dpo"]},
    )
    assert kinds(plan) == {"run": 2}


@pytest.mark.parametrize(
    "values, words",
    [
        ({"cross": {"seed": [0]}, "grid": {}}, ["unknown key 'grid'", "grids"]),
        ({}, ["expected axes"]),
        ({"cross": {"seed": 3}}, ["cross.seed", "found 3", "list of values"]),
        ({"cross": {"seed": [0, 0]}}, ["cross.seed", "twice"]),
        ({"grids": [1]}, ["grids: found [1]"]),
        ({"cross": {"seed": [0]}, "set": [1]}, ["set: found [1]"]),
        ({"cross": {"seed": []}}, ["cross.seed", "list of values"]),
        ({"cross": {"flaw": {"noise": 3}}}, ["cross.flaw", "every case must be a mapping"]),
        (
            {"cross": {"seed": [0], "selection.budgte": [5]}},
            [
                "point seed 0, budgte 5",
                "unknown parameter 'selection.budgte'",
                "did you mean 'budget'",
            ],
        ),
        ({"cross": {"selection.budget": [5, 100000]}}, ["selection.budget", "100000", "at most"]),
        ({"cross": {"seed": [0]}, "base": "other.yaml"}, ["cannot read", "other.yaml"]),
        ({"cross": {"seed": [0]}, "base": 3}, ["base: found 3"]),
        ({"cross": {"seed": [0]}, "sweep": "a/b"}, ["sweep: found 'a/b'"]),
        (
            {"cross": {"seed": [0]}, "set": {"evaluation.replicates": 0}},
            ["evaluation.replicates above 0"],
        ),
        ({"cross": {"seed.deep": [0]}, "set": {"seed": 3}}, ["seed.deep", "no block"]),
    ],
)
def test_a_bad_sweep_stops_in_one_sentence_before_any_work(
    base, tmp_path, runs_folder, values, words
):
    with pytest.raises(InputError) as error:
        planned(tmp_path, **values)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value) and not runs_folder.exists()


# --- what is run again after a change: exactly what depends on it


KINDS = {"pool", "cases", "point"}


def new_after(folder, monkeypatch, changed):
    """The kinds of jobs that are new, and those that stay, after the code of a module of the
    library changed, or that of a notebook."""
    before = planned(folder, cross={"selection.budget": [5, 10]})
    digest, cells, touched = digests._digest_of, digests._cells, []

    def digest_of(path):
        hit = f"{digests.LIBRARY}." in changed and path == digests._file(changed)
        touched.append(hit)
        return "changed" if hit else digest(path)

    def cells_of(path):
        return (*cells(path), "1") if str(path).endswith(changed) else cells(path)

    with monkeypatch.context() as patch:
        patch.setattr(digests, "_digest_of", digest_of)
        patch.setattr(digests, "_cells", cells_of)
        digests.code_of.cache_clear()
        after = planned(folder, cross={"selection.budget": [5, 10]})
    digests.code_of.cache_clear()
    assert touched, "digests were taken anew"
    return tuple(
        {job["kind"] for place, job in after.jobs.items() if (place in before.jobs) == kept}
        for kept in (False, True)
    )


@pytest.mark.parametrize(
    "changed, again",
    [
        # cases know the loop, which knows the strategies
        ("shfcas_lib.strategies", {"point", "cases"}),
        ("shfcas_lib.training.policy", {"point", "cases"}),
        # a run folder knows whether people answered in it
        ("shfcas_lib.storage.labels", KINDS),
        ("shfcas_lib.experiment.replication", {"point", "cases"}),
        ("shfcas_lib.gold", KINDS),
        ("shfcas_lib.base.randomness", KINDS),
        ("shfcas_lib.params.schema", KINDS),
        ("shfcas_lib.data.rows", KINDS),
        ("shfcas_lib.tasks.safety", KINDS),
        ("shfcas_lib.models.decoding", KINDS),
        ("shfcas_lib.sweeps.jobs", KINDS),
        ("shfcas_lib.analysis.figures", set()),
        ("shfcas_lib.annotators.label_studio", set()),
        ("shfcas_lib.screen.widget", set()),
        ("shfcas_lib.memory.estimate", set()),
        ("shfcas_lib.sweeps.report", set()),
        ("shfcas_lib.sweeps.plan", set()),
        ("shfcas_lib.sweeps.driver", set()),
        ("shfcas_lib.cli.runs", set()),
        ("sweep/point.ipynb", {"point"}),
        ("sweep/cases.ipynb", {"cases", "point"}),
        ("05_sweep_report.ipynb", set()),
        ("04_evaluation.ipynb", set()),
    ],
)
def test_a_change_of_code_makes_exactly_the_jobs_that_depend_on_it_new(
    base, tmp_path, monkeypatch, changed, again
):
    assert new_after(tmp_path, monkeypatch, changed) == (again, KINDS - again)


@pytest.fixture
def own_notebooks(base, tmp_path, monkeypatch):
    """A project folder whose notebooks are these three: their code cells."""

    def write(**cells):
        for kind, source in cells.items():
            path = tmp_path / "notebooks" / "sweep" / f"{kind}.ipynb"
            path.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(
                nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path
            )
        monkeypatch.setenv("SHFCAS_HOME", str(tmp_path))
        digests.code_of.cache_clear()

    yield write
    digests.code_of.cache_clear()


@pytest.mark.parametrize(
    "source, module",
    [
        ("import shfcas_lib as shf\nshf.all_pairs(1)", "selection"),
        ("import shfcas_lib as shf\nuse = [shf.LabelStore for _ in ()]", "storage.labels"),
        ("import shfcas_lib\nshfcas_lib.load_prompts()", "data.prompts"),
        ("from shfcas_lib import tilt", "policies"),
        ("from shfcas_lib import kendall_distance as k", "conflict"),
        ("from shfcas_lib import analysis\nanalysis.headline()", "analysis.summary"),
        ("from shfcas_lib.analysis import headline", "analysis.summary"),
        ("from shfcas_lib.memory import shapes", "memory.shapes"),
        ("from shfcas_lib.memory.shapes import shape_of", "memory.shapes"),
        ("import shfcas_lib.conflict\nshfcas_lib.conflict.pacs(1, 2)", "conflict"),
    ],
)
def test_what_a_notebook_takes_through_a_public_face_counts(
    own_notebooks, tmp_path, monkeypatch, source, module
):
    """The face is no code; the modules behind the names that the notebook uses are, with what
    they import themselves."""
    own_notebooks(pool="1", cases="1", point=source)
    named, others = (digests.code_of((f"sweep/{name}",)) for name in ("point", "cases"))
    reached = faces.reached(f"shfcas_lib.{module}")
    assert {name for name in named if name not in others} - reached == {"sweep/point.ipynb"}
    assert reached <= set(named)
    assert new_after(tmp_path, monkeypatch, f"shfcas_lib.{module}") == (
        {"point"},
        {"pool", "cases"},
    )
    assert new_after(tmp_path, monkeypatch, "shfcas_lib.screen.widget") == (set(), KINDS)


@pytest.mark.parametrize("kind", digests.NOTEBOOKS)
def test_a_digest_names_every_module_that_its_notebooks_reach(kind):
    """What a fresh process has imported after the notebooks' own imports, and what those modules
    import, by another reading of their source than the digest's."""
    cells = [
        cell
        for name in digests.NOTEBOOKS[kind]
        for cell in digests._cells(ROOT / "notebooks" / f"{name}.ipynb")
    ]
    packages = {name for name, path in faces.modules().items() if path.name == "__init__.py"}
    opened = digests.modules_of("\n".join(cells)) - packages
    expected = set().union(*(faces.reached(module) for module in opened))
    found = set(digests.code_of(digests.NOTEBOOKS[kind]))
    assert {name for name in found if name.startswith("shfcas_lib.")} == expected | set(
        digests._RUNNERS
    )
    lines = "\n".join(f"import {module}" for module in sorted(opened))
    said = subprocess.run(
        [sys.executable, "-c", f"import sys\n{lines}\nprint(*sys.modules)"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert {name for name in said if name.startswith("shfcas_lib")} - packages <= found


def test_comments_and_dates_of_files_change_nothing(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("x = 1  # one\n")
    first = digests._digest_of(path)
    digests._digest_of.cache_clear()
    path.write_text("x  =  1\n")
    os.utime(path, (1, 1))
    assert digests._digest_of(path) == first
    digests._digest_of.cache_clear()
    path.write_text("x = 2\n")
    assert digests._digest_of(path) != first


@pytest.mark.parametrize(
    "change, again",
    [
        ({"selection.top_share": 0.3}, {"point"}),
        ({"reward.l2": 7.0}, {"cases", "point"}),
        ({"split.train": 0.3, "split.evaluate": 0.4}, {"cases", "point"}),
        ({"sampling.temperature": 0.9}, {"pool", "cases", "point"}),
        ({"feedback.noise": 0.1}, {"point"}),
    ],
)
def test_a_change_of_a_parameter_makes_exactly_the_jobs_that_depend_on_it_new(
    base, tmp_path, change, again
):
    before = planned(tmp_path, cross={"selection.budget": [5, 10]})
    after = planned(tmp_path, set=change, cross={"selection.budget": [5, 10]})
    assert {job["kind"] for place, job in after.jobs.items() if place not in before.jobs} == again


def test_a_change_of_a_file_or_module_of_the_users_makes_what_reads_it_new(tmp_path, monkeypatch):
    prompts, module = tmp_path / "prompts.csv", tmp_path / "mine_gold.py"
    prompts.write_text("prompt\n" + "\n".join(f"question {k}" for k in range(60)))
    module.write_text("def good(prompt, completion):\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "base.yaml").write_text(
        yaml.safe_dump(
            {
                "prompts": {"file": str(prompts)},
                "gold": {"kind": "mine_gold:good"},
                "selection": {"budget": 4},
            }
        )
    )
    seen = [set(planned(tmp_path, cross={"seed": [0]}).jobs)]
    for path in (prompts, module):
        path.write_text(path.read_text() + "\n")
        seen.append(set(planned(tmp_path, cross={"seed": [0]}).jobs))
        assert not seen[-1] & seen[-2]
    os.utime(prompts, (1, 1))
    assert set(planned(tmp_path, cross={"seed": [0]}).jobs) == seen[-1]


def test_an_attribute_that_a_remedy_takes_out_is_read_by_all_but_the_pools(base, tmp_path):
    own = {"evaluation.remedies": ["projection"]}
    own["evaluation.remedy_attribute"] = "tiny_gold:consonants"
    plan = planned(tmp_path, set=own, cross={"seed": [0]})
    reads = {job["kind"] for job in plan.jobs.values() if "tiny_gold" in job["inputs"]}
    assert reads == {"cases", "point"}


def test_axes_whose_last_names_are_alike_keep_their_whole_names(base, tmp_path):
    plan = planned(tmp_path, cross={"prompts.n": [50, 60], "sampling.n": [3, 4]})
    assert plan.points[0]["label"] == {"prompts.n": "50", "sampling.n": "3"}
    assert report._setting(plan.points[0]["label"]) == "prompts.n 50, sampling.n 3"


def test_a_relative_runs_folder_is_made_absolute(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHFCAS_RUNS", "my runs")
    monkeypatch.setenv("SHFCAS_HOME", str(ROOT))
    assert planned(tmp_path, cross={"seed": [0]}).folder == tmp_path / "my runs/sweeps/s"


@pytest.mark.parametrize(
    "feedback", [{"kind": "person"}, {"kind": "team"}, {"kind": "mixed", "person": "person"}]
)
def test_a_sweep_does_not_wait_for_people(base, tmp_path, feedback):
    with pytest.raises(InputError, match="a sweep cannot wait for people"):
        planned(
            tmp_path, set={"feedback": feedback, "evaluation.replicates": 0}, cross={"seed": [0]}
        )


def test_a_job_refuses_to_run_with_other_code_than_it_was_planned_with(base, tmp_path):
    job = next(
        job
        for job in planned(tmp_path, cross={"seed": [0]}).jobs.values()
        if job["kind"] == "point"
    )
    assert jobs._changed(job) is None
    job["code"]["shfcas_lib.strategies"] = "another"
    assert jobs._changed(job) == (
        "shfcas_lib.strategies changed after the sweep was started: start it again"
    )


def test_a_clock_that_is_set_back_makes_no_negative_seconds(tmp_path, monkeypatch):
    """The driver's time left comes from the seconds of finished jobs."""
    real, looks = time.time, iter(range(100))
    monkeypatch.setattr(time, "time", lambda: real() - 1e8 * next(looks))
    monkeypatch.setattr(jobs, "NOTEBOOKS", {"point": ()})
    monkeypatch.setattr(jobs, "die_with_parent", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "job.json").write_text(json.dumps({"kind": "point", "threads": 1, "digest": "d"}))
    assert jobs.execute_job(tmp_path)
    assert 0 <= json.loads((tmp_path / "done.json").read_text())["seconds"] < 60


# --- the report's tables, where a sweep is not what the notebook hopes for


def measured(policies, budgets=(10, 20), pools=2, seeds=4, settings=("a",)):
    rows = [
        (s, b, p, k, name, 0.5 + 0.001 * b * j + 0.01 * ((7 * k + 3 * j + p) % 5), 0.1)
        for s in settings
        for b in budgets
        for p in range(pools)
        for k in range(seeds)
        for j, name in enumerate(policies)
    ]
    return pd.DataFrame(
        rows, columns=["setting", "budget", "pool", "seed", "policy", "gold", "gap"]
    )


@pytest.mark.parametrize(
    "policies", [("proxy", "shf_cas"), ("proxy", "random"), ("proxy", "shf_cas", "random")]
)
def test_tables_of_a_sweep_with_or_without_random(policies):
    measures = measured(policies)
    against = report.comparisons(measures)
    assert len(against) == (2 if len(policies) == 3 else 0)
    assert len(report.matrix(report.rows_at(measures, *report.main_setting(measures)))) == len(
        policies
    ) * (len(policies) - 1)
    assert len(report.efficiency(report.budget_curves(measures))) == (
        0 if "random" not in policies else len(policies) - 1
    )


def test_remedies_are_compared_and_buy_no_labels():
    measures = measured(("proxy", "attribute_out", "random", "shf_cas"))
    assert set(report.comparisons(measures)["policy"]) == {"attribute_out", "shf_cas"}
    assert set(report.budget_curves(measures)["policy"]) == {"random", "shf_cas"}
    here = report.rows_at(measures, "a", 10)
    assert report.strategies_of(here) == ["shf_cas", "random"]
    assert ("attribute_out", "shf_cas") in set(
        report.matrix(here)[["policy", "against"]].itertuples(index=False, name=None)
    )


def test_the_matrix_says_the_same_on_both_sides():
    table = report.matrix(
        report.rows_at(measured(("proxy", "random", "shf_cas", "pacs")), "a", 10)
    ).set_index(["policy", "against"])
    mirror = {"higher": "lower", "lower": "higher", "not significant": "not significant"}
    for (policy, against), row in table.iterrows():
        other = table.loc[(against, policy)]
        assert (row["difference"], row["p_holm"], row["verdict"]) == (
            -other["difference"],
            other["p_holm"],
            mirror[other["verdict"]],
        )


def predicted(chance, pools=3, seeds=8):
    """The table `predicts` of a sweep: in setting a one measure lies .05 above its chance level
    and one at it, in setting b both lie at it. chance: of a pool and a seed."""
    draw, rows = np.random.default_rng(0), []
    for setting, (pool, seed) in product("ab", product(range(pools), range(seeds))):
        for measure, above in {"knows": 0.05 * (setting == "a"), "does not": 0.0}.items():
            level = chance(pool, seed)
            value = level + above + draw.normal(0, 0.01)
            rows.append((setting, measure, 10, pool, seed, value, level))
    columns = ["setting", "measure", "budget", "pool", "seed", "value", "chance"]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize("chance", [lambda pool, seed: 0.4 + 0.02 * seed, lambda *_: 0.5])
def test_a_prediction_is_compared_with_its_placebo_pool_by_pool_and_seed_by_seed(chance):
    """The second chance level is the constant that older tables have."""
    table = predicted(chance)
    found = report.predictions(pd.concat([table, table])).set_index(["setting", "measure"])
    assert found["verdict"].to_dict() == {
        ("a", "knows"): "higher",
        ("a", "does not"): "not significant",
        ("b", "knows"): "not significant",
        ("b", "does not"): "not significant",
    }
    row = found.loc["a", "knows"]
    assert row["above"] == pytest.approx(0.05, abs=0.01) and row["pools"] == 3
    assert row["chance"] == pytest.approx(table["chance"].mean())
    # what varies from seed to seed in both is no error of the difference
    assert row["above_high"] - row["above_low"] < 0.02


def test_a_prediction_that_is_not_defined_is_left_out():
    table = predicted(lambda *_: 0.5)
    table.loc[table["measure"] == "knows", "value"] = float("nan")
    assert set(report.predictions(table)["measure"]) == {"does not"}
    assert len(report.predictions(table.head(0))) == 0


def test_bands_leave_out_units_without_a_value():
    table = measured(("proxy",), seeds=3)
    table.loc[0, "gold"] = float("nan")
    assert report.bands(table, ["setting", "policy"], "gold")["value"].notna().all()


def test_trained_policies_of_different_settings_stay_apart_and_one_run_has_no_interval():
    table = measured(("proxy", "shf_cas"), budgets=(10,), settings=("dpo", "rso")).rename(
        columns={"seed": "prompt_id"}
    )
    found = report.trained_table(table)
    assert found.set_index(["setting", "policy"])["pools"].to_dict() == {
        (s, p): 2 for s in ("dpo", "rso") for p in ("proxy", "shf_cas")
    }
    assert report.trained_table(table[table["pool"] == 0])["low"].isna().all()
    one = found.query("setting == 'dpo' and policy == 'shf_cas'").iloc[0]
    here = table.query("setting == 'dpo'").pivot(
        index=["pool", "prompt_id"], columns="policy", values="gold"
    )
    assert (
        one["over"] == pytest.approx((here["shf_cas"] - here["proxy"]).mean())
        and one["over_low"] < one["over"] < one["over_high"]
    )
    assert (found.query("policy == 'proxy'")[["over", "over_low", "over_high"]] == 0).all(axis=None)


def test_overhead_is_for_one_selection_in_one_setting():
    timing = pd.DataFrame(
        {"setting": ["a", "b"], "budget": 10, "policy": "shf_cas", "seconds": [4.0, 100.0]}
    )
    rounds = pd.DataFrame({"setting": ["a", "b"], "budget": 10, "round": [2, 1]})
    assert report.overhead(timing, rounds, "a", 10)["seconds"].tolist() == [2.0]


# --- real sweeps on a tiny model


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """An undisturbed sweep: (sweep file, runs folder, what the command printed)."""
    # what Snakemake, a shell or YAML could read as theirs
    folder = tmp_path_factory.mktemp("sweep") / """a #1: "ü" {x} '$HOME' %s"""
    folder.mkdir()
    path = write_sweep(folder, tiny_model)
    done = drive(path, folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return path, folder, done.stdout


def test_a_sweep_prints_one_line_for_each_job_with_elapsed_and_remaining_time(finished):
    lines = [line for line in finished[2].splitlines() if line.startswith("[")]
    assert len(lines) == 8  # 2 pools, 2 cases, 4 points
    assert all("done" in line and "elapsed 0:" in line and "left " in line for line in lines)
    assert lines[-1].startswith("[8/8]") and "left about 0:00:00" in lines[-1]


def test_tables_hold_every_point_seed_and_policy(finished):
    tables = results(finished[1])
    assert (tables["points"]["state"] == "done").all() and len(tables["points"]) == 4
    rows = tables["measures"]
    assert set(rows["policy"]) == {
        "base",
        "proxy",
        "full",
        "clean",
        "shf_cas",
        "uncertainty",
        "random",
    }
    assert (
        len(rows) == 4 * 3 * 7
        and not rows.duplicated(["setting", "budget", "pool", "seed", "policy"]).any()
    )
    assert set(tables["predicts"]["seed"]) == {0, 1, 2}


def test_a_point_equals_the_replicates_of_a_whole_run(finished, tiny_model):
    """The fast path of the sweep and notebook 04 are one computation."""
    from shfcas_lib.experiment import replication

    path, folder, _ = finished
    plan = sweep_plan.compile_plan(path)
    point = plan.points[0]["place"]
    root = folder / "sweeps" / "tiny"
    pool = root / plan.jobs[point]["needs"]["pool"]
    values = reading.validate(plan.jobs[point]["params"], "point")
    again = replication.replicates(
        values,
        pd.read_parquet(pool / "prompts.parquet"),
        pd.read_parquet(pool / "pool.parquet"),
        pd.read_parquet(pool / "gold.parquet")["gold"].to_numpy(),
    )["replicates"]
    swept = pd.read_parquet(root / point / "measures.parquet")
    both = again.merge(swept, on=["seed", "policy"], suffixes=("", "_swept"))
    assert len(both) == 9
    pd.testing.assert_series_equal(both["gold"], both["gold_swept"], check_names=False)


def test_a_finished_sweep_runs_nothing_again_even_when_files_are_touched(finished):
    path, folder, _ = finished
    for touched in (
        ROOT / "shfcas_lib" / "pool.py",
        ROOT / "notebooks" / "sweep" / "point.ipynb",
        path,
        *(folder / "sweeps/tiny").glob("pool/*/done.json"),
    ):
        os.utime(touched)
    stamps = {p: p.stat().st_mtime_ns for p in (folder / "sweeps/tiny").glob("point/*/*.parquet")}
    done = drive(path, folder)
    assert done.returncode == 0 and " 0 to run" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


def test_dry_run_says_what_would_run_and_why(finished, tmp_path):
    path, folder, _ = finished
    values = yaml.safe_load(path.read_text())
    values["cross"]["selection.budget"] = [6, 12, 18]
    more = path.parent / "more.yaml"
    more.write_text(yaml.safe_dump(values))
    said = drive(more, folder, "--dry-run").stdout
    assert (
        "6 points, 10 jobs, 2 to run" in said
        and said.count("not run yet") == 2
        and "point/0.18-" in said
    )
    values["set"] = {"reward.l2": 21.0}
    more.write_text(yaml.safe_dump(values))
    said = drive(more, folder, "--dry-run").stdout
    assert (
        "8 to run" in said
        and said.count("other parameters than before") == 2
        and said.count("needs cases/") == 6
    )


def said_of_pools(runs_folder, name):
    return [
        json.loads(path.read_text())
        for path in (runs_folder / "sweeps/tiny").glob(f"pool/*/{name}.json")
    ]


def test_jobs_that_load_the_model_never_overlap_on_a_gpu(tiny_model, tmp_path):
    """Snakemake counts the GPU, whether there is one or not."""
    path = write_sweep(tmp_path, tiny_model, cross={"seed": [0, 1]})
    done = drive(path, tmp_path / "runs", "--gpus", "1")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    times = sorted(
        (one["started"], one["started"] + one["seconds"])
        for one in said_of_pools(tmp_path / "runs", "done")
    )
    assert len(times) == 2 and times[0][1] <= times[1][0]
    assert {one["threads"] for one in said_of_pools(tmp_path / "runs", "job")} == {2}


def test_on_a_cpu_two_of_them_share_the_cores(finished):
    assert [one["threads"] for one in said_of_pools(finished[1], "job")] == [1, 1]
    assert [
        driver._at_once(*asked)
        for asked in (
            (1, 0, None),
            (2, 0, None),
            (16, 0, None),
            (16, 1, None),
            (16, 0, Path("profile")),
        )
    ] == [1, 2, 2, 1, 1]


def test_the_report_opens_without_a_network(finished):
    page = (finished[1] / "sweeps/tiny/report.html").read_text()
    assert "What a label buys" in page and page.count("data:image/png;base64") >= 6
    for mark in (
        'src="http',
        "src='http",
        'href="http',
        "url(http",
        "@import url",
        'import("http',
        "cdnjs",
        "unpkg",
        "jsdelivr",
    ):
        assert mark not in page, mark


def test_the_report_holds_its_figures_beside_their_tables(finished):
    figures = finished[1] / "sweeps/tiny/figures"
    for name in (
        "gain_by_budget",
        "strategies",
        "significance",
        "predicts_error",
        "over_optimisation",
        "category_gains",
        "overhead",
    ):
        assert all(
            (figures / f"{name}{suffix}").stat().st_size > 100
            for suffix in (".png", ".svg", ".csv")
        )


def alive(text):
    """Processes whose command line or environment names `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdigit()
                and int(entry.name) != os.getpid()
                and (
                    text in (entry / "cmdline").read_bytes().decode(errors="replace")
                    or text in (entry / "environ").read_bytes().decode(errors="replace")
                )
            ):
                found.append(
                    (
                        int(entry.name),
                        (entry / "cmdline")
                        .read_bytes()
                        .decode(errors="replace")
                        .replace("\0", " ")[:90],
                    )
                )
        except OSError:
            continue
    return found


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_sweep_leaves_no_orphan_and_resumes_to_the_same_results(
    finished, tiny_model, tmp_path, stop
):
    path = write_sweep(tmp_path, tiny_model)
    mine = tmp_path / "runs"
    process = subprocess.Popen(
        [sys.executable, "-m", "shfcas_lib", "sweep", str(path), "--cores", "2", "--gpus", "0"],
        cwd=ROOT,
        env=environment(mine),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:  # in the middle: some jobs done, others at work
        if line.startswith("[3/"):
            break
    process.send_signal(stop)
    process.stdout.read()
    process.wait(60)
    end = time.time() + 20
    while (left := alive(str(mine))) and time.time() < end:
        time.sleep(0.2)
    assert not left, left
    before = len(list((mine / "sweeps/tiny").glob("*/*/done.json")))
    done = drive(path, mine)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert before >= 3 and f"{8 - before} to run" in done.stdout
    theirs = results(finished[1])
    assert_same(results(mine), theirs)


def test_a_second_driver_is_refused(finished):
    path, folder, _ = finished
    with open(folder / "sweeps/tiny/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = drive(path, folder)
    assert (
        done.returncode == 2
        and "another driver is already running this sweep" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_a_failed_point_keeps_its_notebook_and_the_others_go_on(tiny_model, tmp_path):
    """One case raises, one takes its kernel with it; strategies are an axis, so that points share
    references."""
    flawed = {
        name: {"bias": [{"kind": "attribute", "attribute": f"tiny_gold:{name}", "strength": 0.5}]}
        for name in ("broken", "deadly")
    }
    path = write_sweep(
        tmp_path,
        tiny_model,
        cross={"flaw": flawed | {"good": {}}, "selection.strategies": [["shf_cas"], ["random"]]},
    )
    done = drive(path, tmp_path / "runs")
    assert done.returncode == 1, done.stdout + done.stderr[-2000:]
    assert (
        "FAILED  sweep/cases stopped in cell" in done.stdout
        and "its kernel died" in done.stdout
        and done.stdout.count("not run: point/") == 4
    )
    root = tmp_path / "runs/sweeps/tiny"
    notebooks = [
        nbformat.read(p.parent / json.loads(p.read_text())["notebook"], 4)
        for p in root.glob("cases/*/failed.json")
    ]
    assert len(notebooks) == 2
    assert any(
        output.get("ename") == "ZeroDivisionError"
        for notebook in notebooks
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    states = (
        pd.read_parquet(root / "tables/points.parquet").groupby("flaw")["state"].agg(list).to_dict()
    )
    assert states == {"broken": ["not run"] * 2, "deadly": ["not run"] * 2, "good": ["done"] * 2}
    tables = report.open_tables(root)
    assert (
        tables["comparisons"]["policy"].tolist() == ["shf_cas"]
        and not tables["measures"].duplicated([*report.UNITS, "policy"]).any()
    )
    again = drive(path, tmp_path / "runs", "--dry-run").stdout
    assert "6 to run" in again and again.count("failed before") == 2


def test_a_sweep_of_trained_policies(tiny_model, tmp_path):
    """With a probe they start from the shared pool and proxies; a trained reward makes each a run
    of the four notebooks."""
    path = write_sweep(
        tmp_path,
        tiny_model,
        set={
            "policy": {"kind": "dpo", "pairs": 4},
            "evaluation.replicates": 0,
            "evaluation.answers": 3,
            "selection.budget": 6,
            "selection.rounds": 2,
            "prompts.n": 30,
            "selection.strategies": ["shf_cas", "random"],
        },
        cross={"seed": [0], "reward.kind": ["probe", "lora"]},
    )
    done = drive(path, tmp_path / "runs")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    table = report.open_tables(tmp_path / "runs/sweeps/tiny")["trained"]
    policies = {
        setting: set(part["policy"])
        for setting, part in report.trained_table(table).groupby("setting")
    }
    assert policies == {
        "probe": {"base", "proxy", "shf_cas", "random", "clean"},
        "lora": {"base", "proxy", "shf_cas", "random"},
    }
    probe = table[table["setting"] == "probe"]
    base = probe[probe["policy"] == "base"]
    # the same prompts, the same gold: the two tables meet where they should
    np.testing.assert_allclose(base["gold"], base["tilted_gold"])
    moved = probe[probe["policy"] != "base"]
    assert (
        (moved["tilted_kl"] > -1e-9).all()
        and moved["tilted_kl"].mean() > 0
        and (moved["kl"] != 0).any()
    )
    written = [
        pd.read_parquet(path)
        for path in (tmp_path / "runs/sweeps/tiny").rglob("pool_shf_cas.parquet")
    ]
    # evaluation.answers
    assert len(written) == 2 and all(
        (part.groupby("prompt_id").size() == 3).all() for part in written
    )


def test_without_snakemake_one_sentence_says_how_to_get_it(base, tmp_path, monkeypatch):
    plan = planned(tmp_path, cross={"seed": [0]})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"a sweep needs snakemake, .*\[sweep\]"):
        driver.drive(plan)


def test_the_shipped_sweeps_compile():
    for path in sorted((ROOT / "params" / "sweeps").glob("*.yaml")):
        assert sweep_plan.compile_plan(path).points, path
        assert path.read_text().startswith("# "), "a header says what the sweep does"


def test_the_shipped_sweeps_do_not_follow_the_quickstarts(tmp_path):
    """docs/results.md keeps its meaning where the demo gets another flaw or refinement."""
    shutil.copytree(ROOT / "params" / "sweeps", tmp_path / "sweeps")
    for path in (ROOT / "params").glob("quickstart*.yaml"):
        values = yaml.safe_load(path.read_text())
        values["bias"] = [{"kind": "noise", "rate": 0.4}]
        values["reward"] |= {"refinement": "labels_alone", "feedback_weight": 9.0}
        values["selection"] = {"strategies": ["random"], "budget": 7, "rounds": 3, "top_share": 0.1}
        values["evaluation"] = {"replicates": 2, "remedies": ["projection"]}
        (tmp_path / path.name).write_text(yaml.safe_dump(values))
    for path in sorted((tmp_path / "sweeps").glob("*.yaml")):
        ours = ROOT / "params" / "sweeps" / path.name
        points, others = (list(sweep_plan._cross(p, sweep_plan._read(p))) for p in (ours, path))
        assert points == others, path.name


# --- provenance, secrets


def test_a_sweep_is_released_with_its_trace_and_without_keys(finished, tmp_path, monkeypatch):
    path, folder, printed = finished
    assert leaks(folder) == [] and not any(value in printed for value in CANARIES.values())
    monkeypatch.setenv("SHFCAS_RUNS", str(folder))
    plan = sweep_plan.compile_plan(path)
    target = report.release_tables(plan, tmp_path / "released")
    written = [p for p in target.rglob("*") if p.is_file() and p.name != provenance.RECORDS]
    assert len(written) > 6
    for file in written:
        found = provenance.trace(file)
        assert found.definition["sweep"] == "tiny" and found.facts["seed"] == "0, 1"
    measures = plan.folder / plan.points[0]["place"] / "measures.parquet"
    assert provenance.trace(measures).made == f"{plan.points[0]['place']}/measures.parquet"


def test_ticks_of_a_log_axis_are_numbers_and_no_formula(tmp_path):
    from shfcas_lib.sweeps import figures as sweep_figures

    figure = sweep_figures.selection_seconds(
        pd.DataFrame({"policy": ["random", "shf_cas"], "seconds": [0.01, 3.0]}),
        tmp_path / "overhead",
    )
    figure.canvas.draw()
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels(which="both")]
    assert "0.1" in labels and not any("$" in label for label in labels)
