"""Whatever stops a process, a run that goes on equals one that was never stopped, and no answer
is lost or doubled.

    pytest tests/whole/test_faults.py      over 20 kills
    make faults                            over 200, SHFCAS_KILLS says how many; prints the table
                                           of docs/reliability.md

See faults.py for how a process is stopped at a chosen write.
"""

import contextlib
import functools
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import faults
import numpy as np
import pytest
import soak
import tiny_notebooks
import toy

from shfcas_lib.storage import runs
from shfcas_lib.storage.labels import LabelStore

KILLS = int(os.environ.get("SHFCAS_KILLS", 20))
SHARES = {
    "01_proxy": 0.1,
    "02_conflict": 0.1,
    "03_feedback": 0.2,
    "04_evaluation": 0.1,
    "person": 0.1,
    "team": 0.1,
    "takes_over": 0.05,
    "adapter": 0.05,
    "pools": 0.05,
    "proxy": 0.1,
    "rounds": 0.05,
    "policies": 0.1,
}
TRAINED = {
    "pools": "fine-tuning, merging, pools",
    "proxy": "LoRA rewards",
    "rounds": "rounds with LoRA rewards",
    "policies": "DPO",
}
TOLD = []  # (what, kind of fault, how often, changes of an undisturbed attempt)


@pytest.fixture(scope="module")
def context(tiny_model):
    yield faults.server()
    target = Path(os.environ.get("SHFCAS_FAULTS_LOG", os.devnull))
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "w") as log:
        log.writelines(f"| {' | '.join(map(str, row))} |\n" for row in TOLD)


@pytest.fixture(scope="module")
def values(tiny_model):
    """Parameters of a run of four stages that takes some five seconds of CPU."""
    return tiny_notebooks.settings(
        tiny_model,
        run="r",
        prompts={"n": 24},
        sampling={"n": 3, "max_new_tokens": 4},
        selection={"budget": 8, "rounds": 2},
        bias=[{"kind": "attribute", "attribute": "tiny_gold:consonants", "strength": 0.7}],
        evaluation={"replicates": 1, "bootstrap": 100},
    )


@pytest.fixture(scope="module")
def undisturbed(context, values, tmp_path_factory):
    """A run that nothing disturbed: (runs folder, changes of each stage)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, {
        stage: done(faults.run(context, faults.notebook, folder, stage, values))
        for stage in faults.STAGES
    }


def done(result):
    """How many changes an attempt made that reached its end."""
    code, said = result
    assert code == 0, said
    return said[-1]["changes"]


@pytest.fixture
def wheel(tmp_path):
    """A wheel that pip accepts, and its checksum."""
    path = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/words.txt", "one two three\n" * 1000)
        archive.writestr("toy/more.txt", "four\n")
        archive.writestr(
            "toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n"
        )
        archive.writestr(
            "toy-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("toy-1.0.dist-info/RECORD", "")
    from shfcas_lib.storage.files import sha256

    return path, sha256(path)


def beginning(stage, undisturbed, folder):
    """A runs folder in which the stages before `stage` are finished."""
    names = list(faults.STAGES)[: list(faults.STAGES).index(stage)]
    folder.mkdir(parents=True)
    for name in names:
        shutil.copytree(undisturbed[0] / "r" / name, folder / "r" / name)
    return folder


def kill_and_resume(
    context, work, arguments, begin, expected, changes, kills, check=None, between=None
):
    """Stop attempts at `work` again and again, half of them at a change of the folder and half at
    a moment, and let every fourth attempt or so end. After each: nothing that can be read is torn
    or wrong; at the end: all is as undisturbed, nothing is left. Returns the number of kills.
    between: files that stand there before the end alone."""
    generator, killed, chain, longest = np.random.default_rng(KILLS), 0, 0, 1.0
    while killed < kills:
        folder, said = begin(chain), []
        # every part of the work gets a first kill
        at = 1 + int((killed + generator.random()) / kills * changes)
        for number in range(min(4, kills - killed)):
            if number % 2 == 0:
                code, heard = faults.run(
                    context, work, folder, *arguments, kill_at=min(at, changes)
                )
            else:
                code, heard = faults.run(
                    context,
                    work,
                    folder,
                    *arguments,
                    stop=signal.SIGKILL,
                    after=longest * generator.random(),
                )
            said += heard
            if code == 0:
                break
            assert code == -signal.SIGKILL, (code, heard)
            killed += 1
            at = 1 + int(generator.integers(changes) * generator.random())
            (check or (lambda *_: None))(folder, said)
            wrong = (
                faults.differences(faults.whole(folder), expected | (between or {}), partly=True)
                if expected
                else []
            )
            assert not wrong, f"torn or wrong after a kill: {wrong}"
        start = time.monotonic()
        code, heard = faults.run(context, work, folder, *arguments)
        # of what is left after kills
        longest = 0.8 * longest + 0.2 * 2 * (time.monotonic() - start)
        assert code == 0, heard
        (check or (lambda *_: None))(folder, said + heard)
        wrong = faults.differences(faults.whole(folder), expected) if expected else []
        assert not wrong, f"not as undisturbed: {wrong}"
        assert not faults.hidden(folder), faults.hidden(folder)
        shutil.rmtree(folder)
        chain += 1
    return killed


def kills_of(name):
    return max(1, round(KILLS * SHARES[name]))


def first_stages(found, upto):
    """What an undisturbed run holds after `upto`; run.json holds later stages' facts too."""
    names = list(faults.STAGES)[: list(faults.STAGES).index(upto) + 1]
    return {name: value for name, value in found.items() if name.split("/")[1] in names}


@pytest.mark.parametrize("stage", faults.STAGES)
def test_a_stage_killed_anywhere_and_resumed_equals_an_undisturbed_one(
    context, values, undisturbed, tmp_path, stage
):
    expected = first_stages(faults.whole(undisturbed[0]), stage)

    def run_json_apart(folder, said):
        path = folder / "r" / "run.json"
        if path.exists():
            assert faults.whole(folder)["r/run.json"] is not None
            path.unlink()  # its seconds are of this attempt; the file was read, so it is whole

    kills = kill_and_resume(
        context,
        faults.notebook,
        (stage, values),
        lambda chain: beginning(stage, undisturbed, tmp_path / f"{chain}"),
        expected,
        undisturbed[1][stage],
        kills_of(stage),
        run_json_apart,
    )
    TOLD.append((f"stage {stage}", "SIGKILL", kills, undisturbed[1][stage]))


@pytest.fixture(scope="module")
def trained(context, tiny_model, tmp_path_factory):
    """A run that trains all it can, which nothing disturbed: parameters, the checkpoints it went
    through, and by stage (its folder, what it holds, changes)."""
    folder, copies = (tmp_path_factory.mktemp(name) for name in ("trained", "checkpoints"))
    pool = toy.make_pool()
    pairs = pool[pool["index"] == 0].merge(pool[pool["index"] == 1], on="prompt")
    rows = [
        {"prompt": row.prompt, "chosen": row.completion_x, "rejected": row.completion_y}
        for row in pairs.itertuples()
    ]
    (copies / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    small = {"learning_rate": 3e-3, "epochs": 1, "batch_size": 4, "lora": {"r": 4, "dropout": 0.1}}
    values = {
        "run": "r",
        "model": {"source": str(tiny_model), "quantisation": "none", "device": "cpu"},
        "prompts": {"n": 16},
        "gold": {"kind": "tiny_gold:vowels"},
        "preferences": {"file": str(copies / "pairs.jsonl")},
        "sampling": {"n": 4, "max_new_tokens": 4},
        "training": {"checkpoint_every": 1},
        "sft": {"answers": "chosen"} | small,
        "reward": {"kind": "lora"} | small,
        "policy": {"kind": "dpo", "pairs": 12} | small,
        "selection": {"strategies": ["shf_cas"], "budget": 4, "rounds": 1},
        "evaluation": {"replicates": 0},
    }
    found = {}
    for stage in TRAINED:
        changes = done(faults.run(context, faults.stages, folder, values, [stage], copies / "runs"))
        found[stage] = (
            shutil.copytree(folder, tmp_path_factory.mktemp(stage) / "runs"),
            faults.whole(folder),
            changes,
        )
    return values, copies / "runs", found


@pytest.mark.parametrize("stage", TRAINED)
def test_a_training_killed_anywhere_and_resumed_equals_an_undisturbed_one(
    context, trained, tmp_path, stage
):
    """Bit for bit: adapters, heads, merged weights, tables; and on the way every checkpoint that
    could be gone on from."""
    values, copies, found = trained
    _, expected, changes = found[stage]
    before = [*TRAINED].index(stage)

    def begin(chain):
        if before:
            shutil.copytree(found[[*TRAINED][before - 1]][0], tmp_path / f"{chain}")
        return tmp_path / f"{chain}"

    def whole_checkpoints(folder, said):
        for place in folder.rglob("checkpoints"):
            if place.parent.name.startswith("."):
                continue  # is being removed
            steps = sorted(
                place.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])
            )
            if steps:
                files, undisturbed = (
                    {file.name for file in step.iterdir()}
                    for step in (steps[-1], copies / steps[-1].relative_to(folder))
                )
                assert files == undisturbed, steps[-1]

    kills = kill_and_resume(
        context,
        faults.stages,
        (values, [stage]),
        begin,
        expected,
        changes,
        kills_of(stage),
        whole_checkpoints,
        faults.whole(copies),
    )
    TOLD.append((f"stage {stage} as a command: {TRAINED[stage]}", "SIGKILL", kills, changes))


def test_a_person_killed_anywhere_loses_no_saved_answer_and_doubles_none(context, tmp_path):
    changes = done(faults.run(context, faults.person, tmp_path / "whole"))

    def kept(folder, said):
        path = folder / "labels.sqlite"
        given = [row for row in said if isinstance(row, tuple)]
        if path.exists():
            table = faults.rows(path)
            stored = dict(zip(table["id"], table["answer"], strict=True)) if len(table) else {}
            assert [stored.get(row) for row, _ in given] == [answer for _, answer in given], (
                "an answer that was on the screen as saved is gone"
            )
        else:
            assert not given
        if any(isinstance(row, dict) for row in said):
            with LabelStore(path) as store:
                table = store.by_annotator()
            assert (
                len(table) == 26
                and not table.duplicated(["prompt_id", "i", "j", "repeat"]).any()
                and "skip" not in set(table["answer"])
            )
            assert not list(folder.glob("*-wal"))

    kills = kill_and_resume(
        context,
        faults.person,
        (),
        lambda chain: tmp_path / f"{chain}",
        None,
        changes,
        kills_of("person"),
        kept,
    )
    TOLD.append(("answers and undo at the screen", "SIGKILL", kills, changes))


def test_a_team_s_import_killed_anywhere_brings_every_answer_in_once(context, planted, tmp_path):
    sheet = tmp_path / "answers.csv"
    changes = done(faults.run(context, faults.team, tmp_path / "whole", planted[0], sheet))
    changes = done(faults.run(context, faults.team, tmp_path / "again", planted[0], sheet))
    expected = {name: value for name, value in faults.whole(tmp_path / "again").items()}
    kills = kill_and_resume(
        context,
        faults.team,
        (planted[0], sheet),
        lambda chain: tmp_path / f"{chain}",
        expected,
        changes,
        kills_of("team"),
    )
    TOLD.append(("import of a team's answers, and the round after it", "SIGKILL", kills, changes))


def test_a_stage_taken_over_is_whole_or_not_there(context, values, undisturbed, tmp_path):
    def begin(chain):
        return beginning("03_feedback", undisturbed, tmp_path / f"{chain}")

    second = values | {"run": "second"}
    folder = begin("whole")
    changes = done(faults.run(context, faults.takes_over, folder, second))
    kills = kill_and_resume(
        context,
        faults.takes_over,
        (second,),
        begin,
        faults.whole(folder),
        changes,
        kills_of("takes_over"),
    )
    TOLD.append(("stages taken over from another run", "SIGKILL", kills, changes))


def test_an_adapter_saved_over_another_can_be_read_at_any_moment(context, tiny_model, tmp_path):
    changes = done(faults.run(context, faults.adapter, tmp_path / "whole", tiny_model))
    expected = faults.whole(tmp_path / "whole")

    def readable(folder, said):
        found = faults.whole(folder)
        weights, config = "adapter/adapter_model.safetensors", "adapter/adapter_config.json"
        assert config in found or weights not in found, "weights without their configuration"
        assert weights in found or not said, "the older adapter is gone before the new one is there"
        if weights in found:
            assert (
                all(
                    found[weights][key].shape == value.shape
                    for key, value in expected[weights].items()
                )
                and found[config] == expected[config]
            )

    for at in [int(0.75 * changes)] + [
        1 + int(changes * k / kills_of("adapter")) for k in range(kills_of("adapter") - 1)
    ]:  # first: in the middle of the second saving
        folder = tmp_path / "killed"
        code, said = faults.run(context, faults.adapter, folder, tiny_model, kill_at=at)
        assert code == -signal.SIGKILL
        readable(folder, said)
        done(faults.run(context, faults.adapter, folder, tiny_model))
        assert not faults.differences(faults.whole(folder), expected) and not faults.hidden(folder)
        shutil.rmtree(folder)
    TOLD.append(("an adapter saved over an older one", "SIGKILL", kills_of("adapter"), changes))


def test_an_asset_whose_installation_is_killed_is_installed_by_the_next(context, wheel, tmp_path):
    changes = done(faults.run(context, faults.asset, tmp_path / "whole", *wheel))
    expected, folder = faults.whole(tmp_path / "whole"), tmp_path / "killed"
    # late: the asset stands there, its scratch folder too
    points = [changes - 1] if KILLS < 200 else range(1, changes + 1)
    for at in points:
        assert faults.run(context, faults.asset, folder, *wheel, kill_at=at)[0] == -signal.SIGKILL
        done(faults.run(context, faults.asset, folder, *wheel))
        assert not faults.differences(faults.whole(folder), expected) and not faults.hidden(folder)
        shutil.rmtree(folder)
    TOLD.append(("installation of an asset", "SIGKILL", len(points), changes))


# --- other ways to be stopped


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT], ids=lambda stop: stop.name)
def test_asked_to_stop_a_run_leaves_what_a_killed_one_leaves(
    context, values, undisturbed, tmp_path, stop
):
    expected, generator = (
        first_stages(faults.whole(undisturbed[0]), "03_feedback"),
        np.random.default_rng(0),
    )
    times = 1 if KILLS < 200 else 20
    for number in range(times):
        folder = beginning("03_feedback", undisturbed, tmp_path / f"{number}")
        code, said = faults.run(
            context,
            faults.notebook,
            folder,
            "03_feedback",
            values,
            stop=stop,
            after=0.1 + 0.9 * generator.random(),
        )
        assert code in ((0, -stop) if stop == signal.SIGTERM else (0, 1, -stop)), (code, said)
        assert not any(
            "error" in word and "KeyboardInterrupt" not in word["error"] for word in said
        ), said
        done(faults.run(context, faults.notebook, folder, "03_feedback", values))
        (folder / "r" / "run.json").unlink()
        assert not faults.differences(faults.whole(folder), expected) and not faults.hidden(folder)
    TOLD.append(("stage 03_feedback", stop.name, times, ""))


def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(
    "size", [3_000] if KILLS < 200 else [0, 100, 1000, 3_000, 10_000, 30_000, 60_000]
)
def test_a_run_that_may_write_no_more_says_so_in_one_sentence_and_goes_on_later(
    context, values, undisturbed, tmp_path, size
):
    """No file may grow beyond `size` bytes: what a quota does."""
    folder = beginning("03_feedback", undisturbed, tmp_path / "full")
    code, said = faults.run(
        context,
        faults.notebook,
        folder,
        "03_feedback",
        values,
        fault=functools.partial(limit, size),
    )
    assert (
        code == 1 and said[-1]["error"].startswith("InputError: ") and "\n" not in said[-1]["error"]
    ), said
    assert any(
        words in said[-1]["error"] for words in ("cannot write", "label store", "disk I/O error")
    ), said
    assert not faults.hidden(folder)
    expected = first_stages(faults.whole(undisturbed[0]), "03_feedback")
    assert not [
        name
        for name in faults.differences(faults.whole(folder), expected, partly=True)
        if not name.endswith("run.json")
    ]
    done(faults.run(context, faults.notebook, folder, "03_feedback", values))
    (folder / "r" / "run.json").unlink()
    assert not faults.differences(faults.whole(folder), expected) and not faults.hidden(folder)
    TOLD.append(("stage 03_feedback", f"no file above {size} bytes", 1, ""))


@contextlib.contextmanager
def disk(place, size):
    """A small disk at `place`; yields a function that mounts it again with other options. Skips
    where we may not mount."""
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield lambda options: subprocess.run(
            ["mount", "-o", f"remount,{options}", str(place)], check=True
        )
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def kilobytes(folder):
    """What the files below a folder take on a disk of 4 kB blocks."""
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())


def told_that_the_disk_is_full(code, said):
    """The child ended with one sentence, which names the disk."""
    error = said[-1]["error"]
    assert code == 1 and error.startswith("InputError: ") and "\n" not in error, said
    full = ("No space left on device", "disk is full", "disk I/O error")
    assert any(words in error for words in full), said


@pytest.mark.parametrize(
    "stage, room",
    (
        [("01_proxy", 0.3), ("01_proxy", 0.7)]
        if KILLS < 200
        else list(itertools.product(faults.STAGES, np.arange(0.05, 1, 0.1).round(2)))
    ),
)
def test_a_full_disk_stops_a_run_in_one_sentence_and_with_room_it_goes_on(
    context, values, undisturbed, tmp_path, stage, room
):
    """room: the share of what the stage writes that still finds a place."""
    expected = first_stages(faults.whole(undisturbed[0]), stage)
    with disk(tmp_path / "disk", "64m") as remount:
        folder = beginning(stage, undisturbed, tmp_path / "disk" / "runs")
        remount(f"size={kilobytes(folder) + int(room * kilobytes(undisturbed[0] / 'r' / stage))}k")
        code, said = faults.run(context, faults.notebook, folder, stage, values)
        told_that_the_disk_is_full(code, said)
        assert not faults.hidden(folder)
        remount("size=64m")
        done(faults.run(context, faults.notebook, folder, stage, values))
        (folder / "r" / "run.json").unlink()
        assert not faults.differences(faults.whole(folder), expected) and not faults.hidden(folder)
    TOLD.append((f"stage {stage}", f"a disk with room for {room:.0%} of it", 1, ""))


@pytest.mark.parametrize(
    "stage, room",
    (
        [("policies", 0.6)]
        if KILLS < 200
        else list(itertools.product(TRAINED, (0.05, 0.2, 0.4, 0.6, 0.8)))
    ),
)
def test_a_full_disk_stops_a_training_in_one_sentence_and_with_room_it_goes_on(
    context, trained, tmp_path, stage, room
):
    """Checkpoints, adapters, merged weights: safetensors reports a full disk in words of its
    own."""
    values, _, found = trained
    finished, expected, _ = found[stage]
    before = [*TRAINED].index(stage)
    with disk(tmp_path / "disk", "64m") as remount:
        folder = tmp_path / "disk" / "runs"
        if before:
            shutil.copytree(found[[*TRAINED][before - 1]][0], folder)
        more = max(8, int(room * (kilobytes(finished) - kilobytes(folder))))
        remount(f"size={kilobytes(folder) + more}k")
        code, said = faults.run(context, faults.stages, folder, values, [stage])
        told_that_the_disk_is_full(code, said)
        remount("size=64m")
        done(faults.run(context, faults.stages, folder, values, [stage]))
        assert not [
            name
            for name in faults.differences(faults.whole(folder), expected)
            if not name.endswith("run.json")
        ] and not faults.hidden(folder)
    TOLD.append(
        (
            f"stage {stage} as a command: {TRAINED[stage]}",
            f"a disk with room for {room:.0%} of it",
            1,
            "",
        )
    )


def test_a_full_disk_keeps_every_answer_that_was_saved(context, tmp_path):
    with disk(tmp_path / "disk", "128k") as remount:
        folder = tmp_path / "disk" / "runs"
        code, said = faults.run(context, faults.person, folder)
        assert code == 1 and "label store" in said[-1]["error"] and "full" in said[-1]["error"], (
            said
        )
        given = said[:-1]
        assert given, "the disk was full before the first answer"
        remount("size=64m")
        table = faults.rows(folder / "labels.sqlite")
        stored = dict(zip(table["id"], table["answer"], strict=True))
        assert [stored.get(row) for row, _ in given] == [answer for _, answer in given]
        done(faults.run(context, faults.person, folder))
        with LabelStore(folder / "labels.sqlite") as store:
            assert len(store.by_annotator()) == 26
    TOLD.append(("answers and undo at the screen", "a disk of 128k full", 1, ""))


def test_a_read_only_folder_is_one_sentence(context, values, undisturbed, tmp_path):
    with disk(tmp_path / "disk", "64m") as remount:
        folder = beginning("04_evaluation", undisturbed, tmp_path / "disk" / "runs")
        remount("ro")
        start = time.monotonic()
        for stage in ("03_feedback", "04_evaluation"):
            code, said = faults.run(context, faults.notebook, folder, stage, values)
            assert (
                code == 1
                and said[-1]["error"].startswith("InputError: ")
                and "\n" not in said[-1]["error"]
            ), said
            assert any(
                words in said[-1]["error"]
                for words in ("Read-only file system", "unable to open database file")
            ), said
        assert time.monotonic() - start < 30, "nobody is waited for"
        remount("rw")
        assert not faults.hidden(folder)
    TOLD.append(("stages 03_feedback and 04_evaluation", "a read-only folder", 2, ""))


def jump():
    """A clock that is set back and forth by up to three years, at every look at it."""
    real, steps = time.time, np.random.default_rng(0)
    time.time = lambda: real() + steps.uniform(-1e8, 1e8)


def test_a_clock_that_jumps_changes_no_result(context, values, undisturbed, tmp_path):
    folder = beginning("03_feedback", undisturbed, tmp_path / "clock")
    done(faults.run(context, faults.notebook, folder, "03_feedback", values, fault=jump))
    (folder / "r" / "run.json").unlink()
    assert not faults.differences(
        faults.whole(folder), first_stages(faults.whole(undisturbed[0]), "03_feedback")
    )
    done(faults.run(context, faults.person, tmp_path / "person", fault=jump))
    with LabelStore(tmp_path / "person" / "labels.sqlite") as store:
        table = store.by_annotator()
    assert len(table) == 26 and "skip" not in set(table["answer"]), (
        "a later answer stands, whatever the clock said"
    )
    TOLD.append(
        (
            "stage 03_feedback; answers and undo at the screen",
            "a clock that jumps at every look",
            2,
            "",
        )
    )


# --- two at once


@pytest.mark.parametrize("stage", ["03_feedback"] if KILLS < 200 else [*faults.STAGES])
def test_two_runs_in_one_folder_give_what_one_gives(context, values, undisturbed, tmp_path, stage):
    """Both reach their end, and no comparison is answered twice."""
    expected = first_stages(faults.whole(undisturbed[0]), stage)
    times = 1 if KILLS < 200 else 5
    for number in range(times):
        folder = beginning(stage, undisturbed, tmp_path / f"{number}")
        for code, said in faults.together(context, faults.notebook, folder, [(stage, values)] * 2):
            assert code == 0, said
        (folder / "r" / "run.json").unlink()
        assert not faults.differences(faults.whole(folder), expected) and not faults.hidden(folder)
    TOLD.append((f"stage {stage}", "two runs in one folder", times, ""))


def test_of_two_runs_with_other_parameters_in_one_new_folder_one_is_refused(
    context, values, tmp_path
):
    times = 10 if KILLS < 200 else 100
    for number in range(times):
        (tmp_path / f"{number}").mkdir()
        outcomes = faults.together(
            context,
            faults.opens,
            tmp_path / f"{number}",
            [(values | {"seed": seed},) for seed in (0, 1)],
        )
        errors = [said[-1].get("error", "") for _, said in outcomes if "error" in said[-1]]
        assert len(errors) == 1 and "made with other parameters (seed" in errors[0], outcomes
    TOLD.append(("a new run folder", "two runs with other parameters", times, ""))


def test_two_processes_record_their_facts_in_one_run_json(context, values, tmp_path):
    for code, said in faults.together(
        context, faults.records, tmp_path, [(values, name, 8) for name in "ab"]
    ):
        assert code == 0, said
    assert faults.whole(tmp_path)["r/run.json"] == [
        f"{name} {number}" for name in "ab" for number in range(8)
    ]


def test_nobody_clears_away_what_another_is_writing(context, tmp_path):
    """Four processes write into one folder and clear it, all the time."""
    for code, said in faults.together(
        context, faults.writes, tmp_path, [(name, 60) for name in "abcd"]
    ):
        assert code == 0, said
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.json",
        "b.json",
        "c.json",
        "d.json",
    ]
    TOLD.append(("a folder that four processes write into and clear", "all at once", 240, ""))


def test_eight_writers_at_one_label_store_lose_and_double_nothing(context, tmp_path):
    """The small form of `make soak`."""
    found = soak.labels(tmp_path, 640, context)
    assert found["answers"] == 640 and not found["leftovers"]
    memory = [memory for memory, _ in found["memory_and_files_of_a_writer"].values()]
    assert (
        len({files for _, files in found["memory_and_files_of_a_writer"].values()}) == 1
        and memory[-1] < memory[0] + 20
    )


def test_what_a_killed_process_was_writing_goes_and_what_a_living_one_writes_stays(runs_folder):
    from shfcas_lib.params import reading

    run = runs.open_run(reading.validate({"run": "mine"}, "test"))
    folder = run.stage("01_proxy").folder
    program = (
        "import os, sys; from pathlib import Path; from shfcas_lib.storage import files, runs\nwith"
        " runs.atomic(Path(sys.argv[1])) as target:\n    target.write_text('half');"
        " print('writing', flush=True); sys.stdin.readline()"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder / name)],
            env=os.environ | {"PYTHONPATH": str(faults.ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("killed.json", "alive.json")
    ]
    for process in processes:
        assert process.stdout.readline() == "writing\n"
    processes[0].kill()
    processes[0].wait()
    assert [name.split(".")[1] for name in faults.hidden(folder)] == ["alive", "killed"]
    run.stage("02_conflict")
    assert [name.split(".")[1] for name in faults.hidden(folder)] == ["alive"]
    processes[1].communicate("go on\n")
    assert (
        (folder / "alive.json").read_text() == "half"
        and not faults.hidden(folder)
        and not (folder / "killed.json").exists()
    )


class Interrupted:
    """A connection at which the signal arrives right after a transaction was begun."""

    def __init__(self, connection):
        self.connection = connection

    def __getattr__(self, name):
        return getattr(self.connection, name)

    def execute(self, statement, *values):
        result = self.connection.execute(statement, *values)
        if statement.startswith("BEGIN"):
            raise KeyboardInterrupt
        return result


def test_an_interrupt_inside_a_transaction_leaves_the_store_open_for_the_next_answer(tmp_path):
    """Ctrl-C in a notebook whose kernel lives on: the store must not stay locked."""
    table, _ = faults.comparisons(4)
    with (
        LabelStore(tmp_path / "labels.sqlite") as store,
        LabelStore(tmp_path / "labels.sqlite") as other,
    ):
        real = store.connection
        store.connection = Interrupted(real)
        with pytest.raises(KeyboardInterrupt):
            store.add(table.iloc[0], "first", "anna")
        store.connection = real
        other.add(table.iloc[1], "first", "ben")
        store.add(table.iloc[0], "second", "anna")
        assert store.rows()["answer"].tolist() == ["first", "second"]
