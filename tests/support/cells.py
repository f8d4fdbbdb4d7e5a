"""The notebooks' code cells, one after another in this process: the path that a run takes,
without the seconds that kernels need to start."""

from pathlib import Path

import nbformat

from shfcas_lib.sweeps.digests import NOTEBOOKS

_FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


def run(values, names=NOTEBOOKS["run"]):
    """Execute the cells of the notebooks with a run's parameters; returns what the last one left
    behind."""
    import matplotlib

    matplotlib.use("Agg")
    for name in names:
        cells = [
            cell
            for cell in nbformat.read(_FOLDER / f"{name}.ipynb", as_version=4).cells
            if cell.cell_type == "code"
        ]
        namespace = {"display": lambda *shown: None}
        for cell in cells:
            if "parameters" in cell.metadata.get("tags", []):
                namespace["In"] = [
                    "# Parameters\n"
                    + "\n".join(f"{key} = {value!r}" for key, value in values.items())
                ]
            else:
                exec(compile(cell.source, f"{name} {cell.id}", "exec"), namespace)  # noqa: S102 (a cell of this repository)
    matplotlib.pyplot.close("all")
    return namespace
