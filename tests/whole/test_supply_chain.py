"""What may run and what may be installed: no code loads what could execute, every package has its
hashes, the audit says what it looked at."""

import ast
import re
from pathlib import Path

import audit
import nbformat
import pytest
from packaging.requirements import Requirement
from project import REQUIREMENTS, ROOT, TOOLS

from shfcas_lib.cli import people

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "telnetlib",
    "code",
    "codeop",
}
NAMES = {"eval", "exec", "compile", "__import__", "execfile"}
CALLS = {
    "torch.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "yaml.unsafe_load_all",
    "os.system",
    "os.popen",
    "read_pickle",
    "to_pickle",
    "runpy.run_path",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "torch.hub.load",
    "ctypes.PyDLL",
}
OPTIONS = {
    "shell": True,
    "trust_remote_code": True,
    "allow_pickle": True,
    "weights_only": False,
    "use_safetensors": False,
    "escape": False,
}


def dangers(source: str) -> list[str]:
    """What in a source text loads or runs what a stranger could have written, each with its
    line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        found += [
            f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES
        ]
        if isinstance(node, ast.Name) and node.id in NAMES:
            found.append(f"{node.lineno}: {node.id}")
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            found += [
                f"{node.lineno}: {dotted}"
                for call in CALLS
                if dotted == call or dotted.endswith(f".{call}") or (node.attr == call)
            ]
            if dotted == "yaml.load":
                found.append(f"{node.lineno}: yaml.load")
        if (
            isinstance(node, ast.keyword)
            and node.arg in OPTIONS
            and isinstance(node.value, ast.Constant)
            and node.value.value is OPTIONS[node.arg]
        ):
            found.append(f"{node.value.lineno}: {node.arg}={node.value.value}")
        if isinstance(node, ast.Dict):
            found += [
                f"{node.lineno}: {key.value!r}"
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
                and key.value in OPTIONS
                and isinstance(value, ast.Constant)
                and value.value is OPTIONS[key.value]
            ]
    return found


SOURCES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in ("shfcas_lib", "docs", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
SOURCES |= {
    str(path.relative_to(ROOT)): "\n".join(
        cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
    )
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb"))
    if ".ipynb_checkpoints" not in path.parts
}


@pytest.mark.parametrize("name", SOURCES)
def test_no_code_loads_what_could_run(name):
    # The one yaml.load takes a subclass of SafeLoader.
    assert [
        found
        for found in dangers(SOURCES[name])
        if (name, found.split(": ")[1]) != ("shfcas_lib/params/reading.py", "yaml.load")
    ] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "import joblib.externals",
        "torch.load('x')",
        "eval('1')",
        "f = exec",
        "yaml.load(x, Loader=yaml.Loader)",
        "pd.read_pickle(p)",
        "subprocess.run('x', shell=True)",
        "f(**{'trust_remote_code': True})",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "np.load(p, allow_pickle=True)",
        "os.system('x')",
        "__import__('os')",
        "load(p, weights_only=False)",
        "frame.to_html(escape=False)",
        "import numpy, pickle",
    ],
)
def test_each_danger_is_found(source):
    assert len(dangers(source)) >= 1


def test_the_library_is_really_read():
    assert (
        len(SOURCES) > 50
        and "notebooks/sweep/point.ipynb" in SOURCES
        and dangers("x = 1\ny = torch.loads(x)\nevaluate()\nre.compile('x')") == []
    )


def test_the_one_yaml_load_is_safe():
    import yaml

    from shfcas_lib.params import reading

    assert issubclass(reading._UniqueKeyLoader, yaml.SafeLoader)


# --- the locks


def packages(text):
    """name -> (version, hashes) of a requirements file with hashes."""
    found = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", text):
        name, version = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", block).groups()
        found[re.sub(r"[-_.]+", "-", name.lower())] = (
            version,
            re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block),
        )
    return found


def test_the_hashed_lock_holds_the_same_versions_and_a_hash_for_each():
    hashed = packages((ROOT / "requirements-hashed.lock").read_text())
    plain = dict(
        line.strip().split("==")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if "==" in line
    )
    plain = {re.sub(r"[-_.]+", "-", name.lower()): version for name, version in plain.items()}
    assert {name: hashed.get(name, (None,))[0] for name in plain} == plain
    assert all(hashes for _, hashes in hashed.values())
    assert {one.name for one in REQUIREMENTS} <= set(hashed)
    build = re.search(r'requires = \["(\w+)==([\d.]+)"\]', (ROOT / "pyproject.toml").read_text())
    assert hashed[build[1]][0] == build[2], "the project itself is built without the network"


def test_the_hashed_environment_checks_hashes():
    recipe = (ROOT / "Makefile").read_text().split("\nhashed-env:")[1].split("\n\n")[0]
    assert (
        "--require-hashes --requirement requirements-hashed.lock" in recipe
        and "--no-index" in recipe
        and "--no-deps" in recipe
    )


# --- the audit


@pytest.mark.parametrize(
    "out, errors, status, words",
    [
        (
            (
                '{"dependencies": [{"name": "a", "version": "1", "vulns": []}, {"name": "b",'
                ' "skip_reason": "not found"}]}'
            ),
            "",
            0,
            "1 packages were checked, 1 could not be (b); no known",
        ),
        (
            '{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1"}]}]}',
            "",
            1,
            "a 1: CVE-1",
        ),
        (
            '{"dependencies": [{"name": "a", "skip_reason": "not found"}]}',
            "",
            2,
            "knows none of the 1 packages, so nothing was checked",
        ),
        (
            "",
            "Traceback\nrequests.exceptions.ConnectionError: no route\n",
            2,
            (
                "could not be asked, so nothing was checked (requests.exceptions.ConnectionError:"
                " no route)"
            ),
        ),
        ('{"dependencies": []}', "", 2, "nothing was checked"),
        ("[]", "", 2, "nothing was checked"),
    ],
)
def test_the_audit_says_what_it_looked_at(out, errors, status, words):
    found, sentence = audit.told(1, out, errors)
    assert found == status and words in sentence and (status == 1 or "\n" not in sentence)


# --- JupyterLab


def test_jupyterlab_is_started_on_loopback_and_with_its_token():
    """Both ways to start it: no option opens it to others or takes its token away."""
    lines = [
        " ".join(people._lab(Path("/p/03.ipynb"), Path("/p"))),
        next(
            line for line in (ROOT / "Makefile").read_text().splitlines() if "jupyter lab" in line
        ),
    ]
    for line in lines:
        assert "--ServerApp.ip=127.0.0.1" in line and not re.search(
            r"token|password|allow_origin|disable_check|allow-root|0\.0\.0\.0", line
        )


def test_tools_are_not_installed_with_the_library():
    assert not {Requirement(pin).name for pin in TOOLS} & {one.name for one in REQUIREMENTS}
