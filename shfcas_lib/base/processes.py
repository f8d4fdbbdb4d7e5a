"""The processes of a launch: one, or several that work together.

Several were started on the same work by `accelerate launch` or `torchrun`.

    processes.start(device)      # once, before any work; with one process it does nothing
    rows = processes.gathered(work(processes.share(batches)))

Every process walks through the same steps. The main one alone writes; before any process
decides from what is on disk whether a step is done, all of them ask the main one, else some
would wait for ever for others that have gone on.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import pandas as pd

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it dies.

    A driver that is killed leaves no orphans.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def count() -> int:
    """How many processes work together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def is_main() -> bool:
    """Is this the process that writes?"""
    return rank() == 0


def start(device: str) -> None:
    """Join the processes of a launch.

    device: `cpu` (gloo) or `cuda` (NCCL, each process its own GPU).
    """
    if count() > 1:
        from accelerate import PartialState

        # the others wait while one downloads, merges or writes; NCCL would give up after ten
        # minutes
        patience = datetime.timedelta(hours=24)
        PartialState(cpu=device == "cpu", timeout=patience)


def stop() -> None:
    """Leave the processes of a launch."""
    if count() > 1:
        import torch

        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the block before the others do."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def wait() -> None:
    """Go on when every process has come here."""
    if count() > 1:
        import torch

        torch.distributed.barrier()


def agreed(fact: bool) -> bool:
    """What the main process holds for true, on every process."""
    return bool(same([int(fact)])[0])


def same(counts: Sequence[int]) -> list[int]:
    """The main process's counts, on every process."""
    if count() == 1:
        return list(counts)
    import torch

    told = torch.tensor(counts, device=_device())
    torch.distributed.broadcast(told, 0)
    return told.tolist()


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part of the items: every count-th, from its own number on."""
    return items[rank() :: count()]


def gathered(table: pd.DataFrame) -> pd.DataFrame:
    """The tables of all processes, one below the other, on every process.

    They travel as Parquet.
    """
    if count() == 1:
        return table
    import torch

    device = _device()
    parquet = io.BytesIO()
    table.to_parquet(parquet)
    mine = torch.frombuffer(bytearray(parquet.getvalue()), dtype=torch.uint8).to(device)

    # all_gather takes tensors of one size: sizes first, then every table padded to the longest
    sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(count())]
    torch.distributed.all_gather(sizes, torch.tensor([len(mine)], device=device))
    longest = int(max(sizes))
    parts = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in range(count())]
    torch.distributed.all_gather(parts, torch.nn.functional.pad(mine, (0, longest - len(mine))))

    tables = []
    for part, size in zip(parts, sizes, strict=True):
        content = part[: int(size)].cpu().numpy().tobytes()
        tables.append(pd.read_parquet(io.BytesIO(content)))
    return pd.concat([part for part in tables if len(part)], ignore_index=True)


def _device() -> torch.device:
    from accelerate import PartialState

    return PartialState().device
