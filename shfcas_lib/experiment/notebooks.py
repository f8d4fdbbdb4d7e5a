"""A notebook under Papermill: parameters go in, an executed copy comes out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError, Waiting

# those of a run, in order
RUN = (
    "01_proxy_bias_injection",
    "02_conflict_analysis",
    "03_targeted_feedback",
    "04_evaluation",
)

_WAITING = ("Waiting", "Unanswered")  # how the errors are called that say so, in a kernel


def run_notebook(name: str, values: dict, executed: Path, output=None) -> str | None:
    """Run notebooks/`name`.ipynb through Papermill with parameters `values`, its executed copy to
    `executed`; progress bars go to `output` (default: nowhere). Returns one line about what went
    wrong, a kernel that died or is missing included, or None. Raises InputError where the notebook
    does not exist, Waiting where it goes no further before people have answered."""
    papermill = _papermill()
    source = located(name)
    executed.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    try:
        papermill.execute_notebook(
            _literal(source),
            _literal(executed),
            parameters=values,
            cwd=_literal(places.home()),
            kernel_name="python3",
            progress_bar=False,
            stderr_file=output,
            coalesce_streams=True,  # a bar that was drawn anew is kept as it was last
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )
    except papermill.PapermillExecutionError as error:
        if error.ename in _WAITING:
            raise Waiting(error.evalue) from None
        return f"{name} stopped in cell {error.exec_count}: {error.ename}: {error.evalue}"
    except _lost_kernels() as error:
        return f"{name} stopped: {_lost(error)}"
    return None


def _lost_kernels() -> tuple[type[Exception], ...]:
    """What is raised where a kernel cannot start or dies. The last is how one that dies as it
    starts is told."""
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError

    return NoSuchKernel, DeadKernelError, RuntimeError


def _lost(error: Exception) -> str:
    """What to do about a kernel that is gone, in a sentence."""
    from jupyter_client.kernelspec import NoSuchKernel

    if isinstance(error, NoSuchKernel):
        return (
            f"there is no Jupyter kernel {error.name!r} (`jupyter kernelspec list` shows those that"
            " are there): install ipykernel into this environment, then run the same command again"
        )
    if "kernel died" not in str(error).lower():
        raise error
    return (
        "its kernel died, most often for want of memory: look at the system's log and at what"
        " `python -m shfcas_lib plan` says of memory; the same command goes on with what is"
        " finished"
    )


def prepare_notebook(name: str, values: dict, copy: Path) -> Path:
    """Write a copy of a notebook with `values` in it, as Papermill would inject them, not
    executed; returns its absolute path."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    _papermill().execute_notebook(
        _literal(located(name)),
        _literal(copy),
        parameters=values,
        kernel_name="python3",
        prepare_only=True,
        progress_bar=False,
    )
    return copy.resolve()


def located(name: str) -> Path:
    """Where a notebook of the project lies. Raises InputError where it does not exist."""
    path = places.home() / "notebooks" / f"{name}.ipynb"
    if not path.is_file():
        raise InputError(
            f"notebook {path} does not exist: run this command inside a folder that `shfcas init"
            " my-study` made"
        )
    return path


def _literal(path: Path) -> str:
    """A path as Papermill takes it: it fills in braces with parameters, so they are doubled."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _papermill():
    """The package. Its validator would compile the grammars of internationalised addresses, which
    no notebook has: a second for every job."""
    grammars = "rfc3987_syntax"
    unseen = sys.modules.setdefault(grammars, None) is None
    import papermill

    if unseen:
        sys.modules.pop(grammars)
    return papermill
