"""A notebook's parameter cells: what they say now counts, whatever they said before and whatever
later cells use their names for."""

import pytest

from shfcas_lib.base.errors import InputError
from shfcas_lib.params import cells, reading
from shfcas_lib.params.schema import Params

OWN = "# Parameters: the quickstart\nrun = 'quickstart'\nprompts = {'n': 160}\nseed = 7"


def kernel(*sources):
    """The namespace of a kernel that ran these cells."""
    namespace = {"In": [""]}
    for source in sources:
        exec(source, namespace)  # noqa: S102 (the cells of these tests)
        namespace["In"].append(source)
    return namespace


def test_a_notebook_takes_its_defaults_and_then_what_papermill_injected():
    namespace = {
        "In": ["", "# Parameters\nseed = 1\nsampling = {'n': 4}", "# Parameters\nseed = 2"],
        "seed": 2,
        "sampling": {"n": 4},
    }
    assert cells.from_notebook(namespace) == reading.validate(
        {"seed": 2, "sampling": {"n": 4}}, "test"
    )


def test_a_parameter_may_be_computed_in_its_cell():
    namespace = {"In": ["", "# Parameters\nsampling = dict(n=2 + 2)"], "sampling": {"n": 4}}
    assert cells.from_notebook(namespace).sampling.n == 4


def test_a_computed_parameter_is_found_again_after_its_name_was_reused():
    """The notebooks call the run `run` and the prompts table `prompts`."""
    source = "# Parameters\nrun = f'a{1 + 1}'\nseed = 1"
    namespace = {"In": ["", source], "run": "a2", "seed": 1}
    assert cells.from_notebook(namespace).run == "a2"
    namespace["run"] = object()
    assert cells.from_notebook(namespace).run == "a2"
    namespace["In"].append(source)  # the cell ran again, and computed another value
    namespace["run"] = "a3"
    assert cells.from_notebook(namespace).run == "a3"


def test_names_of_other_cells_are_no_parameters():
    namespace = {
        "In": ["", "# Parameters\nseed = 5", "pool = 'a table'"],
        "seed": 5,
        "pool": "a table",
    }
    assert cells.from_notebook(namespace) == Params(seed=5)


def test_a_kernel_without_history_reads_the_parameters_too():
    assert cells.from_notebook({"seed": 5, "pool": "a table"}) == Params(seed=5)


def test_a_later_cell_may_reuse_a_name():
    """Figures call things `sampling` too; what the parameter cell said still holds."""
    namespace = {
        "In": ["", "# Parameters\nsampling = {'n': 4}", "sampling = 'a table'"],
        "sampling": "a table",
    }
    assert cells.from_notebook(namespace).sampling.n == 4


def test_a_parameter_with_a_type_annotation_is_read_too():
    """Papermill reads `seed: int = 3` as a parameter; taking the default instead would be
    silent."""
    assert cells.from_notebook({"In": ["", "# Parameters\nseed: int = 3"], "seed": 3}).seed == 3


def test_a_wrong_value_in_a_notebook_is_named():
    with pytest.raises(
        InputError,
        match="the notebook's parameters: sampling.n: found 1, expected greater than or equal to 2",
    ):
        cells.from_notebook({"In": ["", "# Parameters\nsampling = {'n': 1}"], "sampling": {"n": 1}})


@pytest.mark.parametrize("line", ["sede = 2", "sede: int = 2", "seed = sede = 2"])
def test_an_unknown_name_in_a_parameter_cell_is_an_error(line):
    """However it is assigned: Papermill, too, takes `sede: int = 2` for a parameter."""
    namespace = {
        "In": ["", "# Parameters\nseed = 1", f"# Parameters\n{line}"],
        "seed": 1,
        "sede": 2,
    }
    with pytest.raises(
        InputError, match="the notebook's parameters: unknown parameter 'sede'; did you mean 'seed'"
    ):
        cells.from_notebook(namespace)


def test_a_whole_run_that_papermill_injects_replaces_the_notebooks_own():
    """`papermill -f mine.yaml` must mean what `shfcas run mine.yaml` means: keys that the file
    leaves out have their defaults."""
    own = (
        "# Parameters: the quickstart\nrun = 'quickstart'\nbias = [{'kind': 'noise', 'rate': 0.1}]"
    )
    namespace = {
        "In": ["", own, "# Parameters\nrun = 'mine'\nprompts = {}\n"],
        "run": "mine",
        "prompts": {},
        "bias": [],
    }
    assert cells.from_notebook(namespace) == Params(run="mine")


def test_one_parameter_that_papermill_injects_leaves_the_notebooks_others():
    own = "# Parameters: the quickstart\nrun = 'quickstart'\nprompts = {'n': 160}"
    namespace = {
        "In": ["", own, "# Parameters\nseed = 3\n"],
        "run": "quickstart",
        "seed": 3,
        "prompts": {"n": 160},
    }
    assert cells.from_notebook(namespace) == Params(seed=3, prompts={"n": 160})


# --- what the cell says now


def test_a_line_that_was_deleted_is_gone():
    assert cells.from_notebook(kernel(OWN, OWN.replace("seed = 7", ""))).seed == 0


def test_a_misspelling_that_was_corrected_is_corrected():
    namespace = kernel(OWN.replace("seed", "sede"))
    with pytest.raises(InputError, match="'sede'"):
        cells.from_notebook(namespace)
    namespace |= {"In": [*namespace["In"], OWN]}
    assert cells.from_notebook(namespace).seed == 7


def test_a_line_that_was_deleted_from_the_injected_cell_is_gone():
    namespace = kernel(OWN, "# Parameters\nseed = 3\ntask = 'safety'", "# Parameters\nseed = 3")
    found = cells.from_notebook(namespace)
    assert (found.seed, found.task, found.prompts.n) == (3, "helpfulness", 160)


def test_the_own_cell_that_ran_again_stays_below_what_was_injected():
    """In the notebook it stands above: running it again does not turn the order around."""
    assert cells.from_notebook(kernel(OWN, "# Parameters\nseed = 3", OWN)).seed == 3


@pytest.mark.parametrize(
    "line",
    [
        "prompts['n'] = 80",
        "prompts.update(n=80)",
        "prompts |= {'n': 80}",
        "prompts, seed = {'n': 80}, 7",
        "if run:\n    prompts = {'n': 80}",
        "for prompts in [{'n': 80}]: pass",
    ],
)
def test_what_the_cell_does_with_a_parameter_after_setting_it_counts(line):
    found = cells.from_notebook(kernel(f"{OWN}\n{line}"))
    assert (found.prompts.n, found.seed) == (80, 7)


# --- what Papermill injects


@pytest.mark.parametrize(
    "injected, changes",
    [
        ("run = 'mine'", {"run": "mine"}),
        ("run = 'mine'\nseed = 3", {"run": "mine", "seed": 3}),
        ("sampling = {'n': 4}", {"sampling": {"n": 4}}),
    ],
)
def test_single_parameters_change_themselves_and_nothing_else(injected, changes):
    found = cells.from_notebook(kernel(OWN, f"# Parameters\n{injected}\n"))
    own = {"run": "quickstart", "prompts": {"n": 160}, "seed": 7}
    assert found == reading.validate(own | changes, "test")
