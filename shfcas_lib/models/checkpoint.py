"""The files of a checkpoint, read without loading a weight: are they there, are they whole?

    folder = local_folder(source, revision)       # None: the model lies on a hub alone
    tensors = read_tensors(folder, "model.source 'x'")

A safetensors file begins with the length of its header, eight bytes, and the header: JSON that
gives type, shape and place of every tensor. The last place and the file's length must agree.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError
from shfcas_lib.storage import assets

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Above this no header is read: it would be a file of something else. safetensors' own limit.
LONGEST_HEADER = 100_000_000
POINTER = b"version https://git-lfs"
_OTHER_FORMATS = {".bin": "PyTorch", ".pt": "PyTorch", ".pth": "PyTorch", ".gguf": "GGUF"}


class Tensor(NamedTuple):
    """What a header says of one tensor. dtype: as safetensors writes it (F32, BF16, I32, ...)."""

    dtype: str
    shape: tuple[int, ...]


def local_folder(source: str, revision: str | None = None) -> Path | None:
    """The folder that a model would be read from, where it lies on this machine.

    That is a local folder, an embedded asset that was fetched, or a hub's model whose weights are
    in the cache; else None. Nothing is fetched.
    """
    if source in assets.ASSETS:
        folder = assets.cache_dir() / source
    else:
        folder = places.user_path(source)
        if not folder.exists():
            return _cached(source, revision)
    return folder if (folder / "config.json").is_file() else None


def _cached(source: str, revision: str | None) -> Path | None:
    """The cached folder of a hub's model."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(source, "config.json", revision=revision)
    except HFValidationError:  # a path that does not exist
        return None
    folder = Path(found).parent if isinstance(found, str) else None
    return folder if folder is not None and _has_weights(folder) else None


def _has_weights(folder: Path) -> bool:
    """Does a cached folder hold weights, and every shard that its index names? A configuration is
    often fetched alone, and a download may have stopped."""
    if (folder / INDEX).is_file():
        return all((folder / shard).is_file() for shard in _shards(folder, folder.name))
    return any(path.suffix in (".safetensors", *_OTHER_FORMATS) for path in folder.iterdir())


def check_files(folder: Path, name: str) -> None:
    """Raise InputError for a folder that is no whole model.

    A file is a Git LFS pointer, or the folder is a LoRA adapter. name: what messages call the
    model.
    """
    for path in sorted(folder.iterdir()):
        if path.is_file() and _is_pointer(path):
            raise InputError(
                f"{name}: {path.name} is a Git LFS pointer, not the file itself: `git lfs pull` in"
                " that folder fetches it"
            )
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{name}: the folder holds a LoRA adapter (adapter_config.json), which would be laid"
            " over the model without a word: merge it into the weights, or take that file away"
        )


def _is_pointer(path: Path) -> bool:
    if path.stat().st_size > 1000:
        return False
    return path.read_bytes().startswith(POINTER)


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors by name.

    name: what messages call the model. Raises InputError where there are none, a shard is
    missing, or a file is cut short or is something else.
    """
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS, name)
    if not (folder / INDEX).is_file():
        raise InputError(f"{name}: {_without_weights(folder)}")
    tensors: dict[str, Tensor] = {}
    for shard in _shards(folder, name):
        if not (folder / shard).is_file():
            raise InputError(f"{name}: {INDEX} names {shard}, which is not in the folder")
        tensors |= read_header(folder / shard, name)
    return tensors


def _shards(folder: Path, name: str) -> list[str]:
    """File names that an index speaks of."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{name}: {INDEX} is no list of weights by file") from error


def _without_weights(folder: Path) -> str:
    """What stands in a folder instead of weights in safetensors."""
    shards = sorted(folder.glob("model-*.safetensors"))
    if shards:
        return f"there is {shards[0].name}, but no {INDEX} that says what is in it"
    for path in sorted(folder.iterdir()):
        if path.suffix in _OTHER_FORMATS:
            kind = _OTHER_FORMATS[path.suffix]
            return (
                f"its weights are in {kind}'s format ({path.name}), expected safetensors, the one"
                " that is read here"
            )
    return f"the folder holds no weights ({WEIGHTS})"


def read_header(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one safetensors file. name: what messages call the model.

    Raises InputError for a file that is cut short or is none.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size, LONGEST_HEADER):
            raise InputError(f"{name}: {path.name} is cut short, or no safetensors file")
        try:
            header = json.loads(file.read(length))
            tensors, end = _described(header)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{name}: {path.name} has a header that cannot be read") from error
    expected = 8 + length + end
    if size != expected:
        raise InputError(
            f"{name}: {path.name} has {size:,} bytes where its header announces {expected:,}: it"
            " was not copied or downloaded whole"
        )
    return tensors


def _described(header: dict[str, Any]) -> tuple[dict[str, Tensor], int]:
    """The tensors of a header, and where the last one ends, in bytes behind the header."""
    tensors, end = {}, 0
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        tensors[key] = Tensor(entry["dtype"], tuple(entry["shape"]))
        end = max(end, entry["data_offsets"][1])
    return tensors, end
