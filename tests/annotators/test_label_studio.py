"""The round trip through a real Label Studio. Heavy, so it runs on request only:

    make labelstudio-check       # the pinned version, in a temporary environment: minutes, 1 GB
    SHFCAS_LABEL_STUDIO=/path/to/label-studio pytest tests/annotators/test_label_studio.py

The server keeps its SQLite database in a temporary folder and listens on loopback alone.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import team_run

from shfcas_lib.annotators import exchange, label_studio, questions
from shfcas_lib.base.errors import InputError
from shfcas_lib.storage.labels import LabelStore

VERSION = "1.23.2"
ASKED = os.environ.get("SHFCAS_LABEL_STUDIO", "")
TOKEN = "0123456789abcdef0123456789abcdef01234567"
pytestmark = [
    pytest.mark.skipif(
        not ASKED,
        reason="a real Label Studio is heavy: `make labelstudio-check` installs one and runs this",
    ),
    pytest.mark.timeout(1500),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The label-studio command."""
    if ASKED != "1":
        return Path(ASKED)
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run(
        [
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            f"label-studio=={VERSION}",
        ],
        check=True,
    )
    return folder / "bin" / "label-studio"


@pytest.fixture(scope="module")
def studio(program, tmp_path_factory):
    """A client of a fresh server, signed in by token."""
    data = tmp_path_factory.mktemp("data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
    }
    command = [
        str(program),
        "start",
        "--no-browser",
        "--host",
        url,
        "--internal-host",
        "127.0.0.1",
        "--port",
        str(port),
        "--data-dir",
        str(data),
        "--username",
        "lead@example.org",
        "--password",
        "for-this-test-only",
        "--enable-legacy-api-token",
        "--user-token",
        TOKEN,
    ]
    with open(data / "server.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    client = httpx.Client(
        base_url=url, headers={"Authorization": f"Token {TOKEN}"}, timeout=60, trust_env=False
    )
    try:
        for _ in range(240):
            assert server.poll() is None, (data / "server.log").read_text()[-2000:]
            try:
                if client.get("/api/projects").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(1)
        yield client
    finally:
        client.close()
        server.terminate()
        server.wait(timeout=30)


def ok(response):
    assert response.is_success, (
        f"{response.request.method} {response.request.url}: {response.status_code}"
        f" {response.text[:500]}"
    )
    return response.json()


def test_a_real_label_studio_takes_our_tasks_and_we_take_its_export(studio, planted, tmp_path):
    run, go_on = team_run.start(planted[0])
    with pytest.raises(InputError, match="wait for the team"):
        go_on()
    task_file, configuration = exchange.write_questions(
        exchange.pending(run), tmp_path / "tasks.json"
    )

    project = ok(
        studio.post(
            "/api/projects", json={"title": "shfcas", "label_config": configuration.read_text()}
        )
    )["id"]
    with open(task_file, "rb") as file:  # as the import dialogue does it
        assert (
            ok(
                studio.post(
                    f"/api/projects/{project}/import",
                    files={"file": ("tasks.json", file, "application/json")},
                )
            )["task_count"]
            == 8
        )
    sent = {task["data"]["question"]: task["data"] for task in json.loads(task_file.read_text())}
    there = ok(studio.get("/api/tasks", params={"project": project, "page_size": 100}))["tasks"]
    assert {task["data"]["question"]: task["data"] for task in there} == sent, (
        "texts arrive unchanged"
    )

    answers, expected = ["left", "right", "tie", "left", "right", "tie", "left"], {}
    for task, answer in zip(there, answers, strict=False):
        result = [
            {
                "from_name": "answer",
                "to_name": "prompt",
                "type": "choices",
                "value": {"choices": [answer]},
            }
        ]
        ok(
            studio.post(
                f"/api/tasks/{task['id']}/annotations", json={"result": result, "lead_time": 2.5}
            )
        )
        prompt, left, right, _ = questions.parsed(task["data"]["question"], "")
        expected[prompt, min(left, right), max(left, right)] = (
            "tie"
            if answer == "tie"
            else "first"
            if (answer == "left") == (left < right)
            else "second"
        )
    # skipped
    ok(
        studio.post(
            f"/api/tasks/{there[7]['id']}/annotations", json={"result": [], "was_cancelled": True}
        )
    )

    exported = studio.get(
        f"/api/projects/{project}/export",
        params={"exportType": "JSON", "download_all_tasks": "true"},
    )
    assert exported.is_success
    (tmp_path / "answers.json").write_bytes(exported.content)
    assert exchange.bring_in(run, tmp_path / "answers.json") == {
        "added": 7,
        "known": 0,
        "closed": 0,
        "waiting": 1,
    }
    with LabelStore(run.folder / "03_feedback" / "shf_cas" / "labels.sqlite") as store:
        labels = store.labels()
    assert {(r.prompt_id, r.i, r.j): r.answer for r in labels.itertuples()} == expected
    assert labels["annotator"].nunique() == 1 and labels["annotator"][0].startswith("label-studio:")

    minimal = studio.get(f"/api/projects/{project}/export", params={"exportType": "JSON_MIN"})
    (tmp_path / "minimal.json").write_bytes(minimal.content)
    with pytest.raises(InputError, match="not JSON-MIN"):
        exchange.bring_in(run, tmp_path / "minimal.json")


def test_a_real_label_studio_checks_the_configuration(studio):
    """That it took ours means something: it refuses one whose choices point nowhere."""
    ours = label_studio.labelling_configuration()
    assert studio.post("/api/projects", json={"title": "good", "label_config": ours}).is_success
    assert not studio.post(
        "/api/projects",
        json={"title": "bad", "label_config": ours.replace('toName="prompt"', 'toName="nothing"')},
    ).is_success
