"""Which tests run in one process, one after the other, when pytest is given several.

A file is one unit: what its tests share is made once. Some files, and single tests of others, are
one unit together, because they want the machine or measure it. (xdist's own marks for that,
`xdist_group`, do nothing under pytest 9.2: it changes a name that is no longer read.)"""

# Long units first, so that no process is left with one of them at the end; all others in their
# order.
LONGEST = (
    "sweeps",
    "experiment/test_notebooks.py",
    "whole/test_faults.py",
    "experiment/test_real_runs.py",
    "experiment/test_stages.py",
    "models/test_published.py",
    "experiment/test_without_gold.py",
    "training/test_algorithms.py",
    "clock",
)
TOGETHER = {
    # they fill the machine with jobs
    "sweeps/test_sweep.py": "sweeps",
    "sweeps/test_slurm.py": "sweeps",
    # they measure time or memory
    "memory/test_plan.py": "clock",
    "whole/test_benchmarks.py": "clock",
    "method/test_selection.py::test_selection_time_grows": "clock",
    "data/test_formats.py::test_a_large_file": "clock",
    "whole/test_hostile.py::test_a_line_without_end": "clock",
    "whole/test_architecture.py::test_importing_the_library_takes": "clock",
}


def unit(nodeid: str) -> str:
    """The unit of a test: a file, or one of several files' tests."""
    name = nodeid.removeprefix("tests/")
    return next(
        (what for start, what in TOGETHER.items() if name.startswith(start)),
        name.partition("::")[0],
    )


def turn(nodeid: str) -> int:
    """The place of a test's unit in the queue."""
    name = unit(nodeid)
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def scheduler(config, log):
    """xdist's scheduler of units, with ours."""
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return unit(nodeid)

    return Units(config, log)
