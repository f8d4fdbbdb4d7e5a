"""A notebook under Papermill: parameters go in, an executed copy comes out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError

# those of a run, in order
RUN = (
    "01_proxy_bias_injection",
    "02_conflict_analysis",
    "03_targeted_feedback",
    "04_evaluation",
)


def run_notebook(name: str, values: dict, executed: Path, output=None) -> str | None:
    """Run notebooks/`name`.ipynb through Papermill with parameters `values`, its executed copy to
    `executed`; progress bars go to `output` (default: nowhere). Returns one line about what went
    wrong, or None. Raises InputError where the notebook does not exist."""
    papermill = _papermill()
    source = _source(name)
    executed.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    try:
        papermill.execute_notebook(
            source,
            executed,
            parameters=values,
            cwd=places.home(),
            kernel_name="python3",
            progress_bar=False,
            stderr_file=output,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )
    except papermill.PapermillExecutionError as error:
        return f"{name} stopped in cell {error.exec_count}: {error.ename}: {error.evalue}"
    return None


def prepare_notebook(name: str, values: dict, copy: Path) -> Path:
    """Write a copy of a notebook with `values` in it, as Papermill would inject them, not
    executed; returns its absolute path."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    _papermill().execute_notebook(
        _source(name),
        copy,
        parameters=values,
        kernel_name="python3",
        prepare_only=True,
        progress_bar=False,
    )
    return copy.resolve()


def _source(name: str) -> Path:
    source = places.home() / "notebooks" / f"{name}.ipynb"
    if not source.is_file():
        raise InputError(
            f"notebook {source} does not exist: run this command inside the project folder"
        )
    return source


def _papermill():
    """The package. Its validator would compile the grammars of internationalised addresses, which
    no notebook has: a second for every job."""
    grammars = "rfc3987_syntax"
    unseen = sys.modules.setdefault(grammars, None) is None
    import papermill

    if unseen:
        sys.modules.pop(grammars)
    return papermill
