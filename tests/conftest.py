"""A tiny language model built in the process (no download, the real code path), small synthetic
tables, and how tests are shared out to processes."""

import gc
import os

# Two processes of tests on two cores, with two threads each, would wait for each other. Their
# children inherit it. Read when torch is loaded, so it stands before everything else.
if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
import pytest
import sharing
from canaries import leaks
from tiny_model import make_tiny_model


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return sharing.scheduler(config, log)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: sharing.turn(item.nodeid))


def pytest_collection_finish():
    """What was imported by now stays. Trainers and statsmodels call the garbage collector, which
    would look at a million such objects each time: half a second."""
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of a two-layer Llama with random weights and a byte-level tokenizer with a chat
    template."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def backbone(tiny_model):
    """The tiny model, loaded as a run would load it, unquantised. For tests that add no
    adapters."""
    return _load(tiny_model)


@pytest.fixture
def fresh_backbone(tiny_model):
    """A backbone of the test's own, to put adapters on."""
    return _load(tiny_model)


def _load(folder):
    from shfcas_lib.models.loading import load_backbone
    from shfcas_lib.params.schema import Model

    return load_backbone(Model(source=str(folder), quantisation="none", device="cpu"))


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch):
    """No test writes into the project's runs/."""
    monkeypatch.setenv("SHFCAS_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def no_secret_is_left(tmp_path):
    """Whatever a test wrote, no key out of the environment is in it."""
    yield
    assert leaks(tmp_path) == []


@pytest.fixture(scope="module", autouse=True)
def no_secret_is_left_between_tests(tmp_path_factory):
    """The same of the folders that the tests of a module share."""
    place = tmp_path_factory.getbasetemp()
    before = set(place.iterdir())
    yield
    shared = [
        folder
        for folder in place.iterdir()
        if folder not in before and not folder.is_symlink() and not folder.name.startswith("test_")
    ]
    assert [leak for folder in shared for leak in leaks(folder)] == []


@pytest.fixture
def planted():
    """A pool of 30 prompts x 6 completions whose gold is linear in its features: (pool, gold)."""
    generator = np.random.default_rng(7)
    features = generator.normal(size=(180, 32))
    pool = pd.DataFrame(
        {
            "prompt_id": np.repeat([f"p{k:02d}" for k in range(30)], 6),
            "index": np.tile(range(6), 30),
            "prompt": "prompt",
            "completion": [f"text {k}" for k in range(180)],
            "logp": generator.normal(-40, 8, 180),
            "features": list(features),
        }
    )
    return pool, features[:, :8].sum(1)


@pytest.fixture(scope="session")
def plain(tiny_model):
    """The same model and tokenizer as transformers gives them, nothing of this library in
    between."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(
        tiny_model
    )
