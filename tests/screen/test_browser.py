"""The annotation screen in a real browser on a real JupyterLab: keys, mouse, reload, a killed
kernel, hostile texts, both themes."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
import tiny_run
import yaml
from project import PATHS, ROOT

from shfcas_lib.screen.session import visible
from shfcas_lib.storage.labels import LabelStore

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TOKEN = "only-for-this-test"
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason=(
        "NOT TESTED: the annotation screen needs a browser for its test: apt-get install chromium"
    ),
)


@pytest.fixture
def changes():
    """The parameters of the run that are not the usual ones."""
    return {}


@pytest.fixture
def lab(tmp_path, runs_folder, monkeypatch, changes):
    """JupyterLab on loopback with the prepared notebook 03 of a run: (address, notebook's path in
    it, stage folder, process)."""
    wanted = tiny_run.settings(**changes)
    wanted["selection"] |= {"random_share": 0.4}
    run, _ = tiny_run.make(wanted)
    (tmp_path / "people.yaml").write_text(yaml.safe_dump(wanted))
    settings = tmp_path / "lab" / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
    environment = os.environ | {
        "PYTHONPATH": PATHS,
        "OMP_NUM_THREADS": "1",
        "SHFCAS_ANNOTATOR": "anna",
        "JUPYTER_CONFIG_DIR": str(tmp_path / "lab" / "config"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "lab" / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "lab" / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "lab" / "workspaces"),
    }
    prepared = subprocess.run(
        [
            sys.executable,
            "-m",
            "shfcas_lib",
            "annotate",
            str(tmp_path / "people.yaml"),
            "--prepare",
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert prepared.returncode == 0, prepared.stderr
    notebook = Path(prepared.stdout.strip()).relative_to(runs_folder.resolve())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(tmp_path / "lab" / "log", "w") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.port={port}",
                "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={TOKEN}",
                f"--ServerApp.root_dir={runs_folder}",
                "--LabApp.news_url=None",
            ],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, (tmp_path / "lab" / "log").read_text()[-3000:]
            try:
                request(address, "/api/status")
                break
            except OSError:
                time.sleep(0.25)
        yield address, str(notebook), run.folder / "03_feedback", process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


def request(address, path, method="GET", body=None):
    data = None if body is None else json.dumps(body).encode()
    call = urllib.request.Request(
        address + path,
        method=method,
        data=data,
        headers={"Authorization": f"token {TOKEN}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(call, timeout=10) as answer:
        return json.loads(answer.read() or b"null")


@pytest.fixture
def page(lab, tmp_path):
    """A page of headless Chromium with the notebook open."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1150})
        page.set_default_timeout(90_000)  # for a machine that does other things beside
        page.goto(f"{lab[0]}/lab/tree/{lab[1]}?token={TOKEN}")
        yield page
        page.screenshot(path=tmp_path / "last.png")  # kept by pytest where the test failed
        browser.close()


SCREEN = ".shfcas-screen"


def run_all(page, address):
    """Run > Run All Cells, and wait for a screen that is no leftover of an earlier run."""
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    old = page.locator(SCREEN).get_attribute("data-turn") if page.locator(SCREEN).count() else None
    fresh = (
        "([css, old]) => { const all = document.querySelectorAll(css); return all.length == 1 &&"
        " all[0].dataset.turn !== old }"
    )
    for _ in range(120):  # JupyterLab drops what it is asked to run before it has met its kernel
        with contextlib.suppress(
            OSError
        ):  # the server cannot list a kernel that is just being started
            if [
                k
                for k in request(address, "/api/kernels")
                if k["execution_state"] == "idle" and k["connections"]
            ]:
                break
        page.wait_for_timeout(250)
    page.wait_for_timeout(500)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(fresh, arg=[SCREEN, old])
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", state="attached")
    page.locator(f"{SCREEN} .title").scroll_into_view_if_needed()


def facts(page):
    return page.locator(SCREEN).evaluate(
        "e => ({turn: e.dataset.turn, done: Number(e.dataset.done), state: e.dataset.state})"
    )


def act(page, action):
    """Do something on the screen, as fast as a very fast person, and wait for what comes next."""
    before = facts(page)["turn"]
    page.wait_for_timeout(300)
    action()
    page.wait_for_function(
        "([css, old]) => document.querySelector(css).dataset.turn !== old", arg=[SCREEN, before]
    )
    return facts(page)


def press(page, key):
    return act(page, lambda: page.keyboard.press(key))


def click(page, name):
    return act(page, lambda: page.locator(f"{SCREEN} .choices button", has_text=name).click())


def shown(page):
    return page.locator(f"{SCREEN} .pair .text").evaluate_all("all => all.map(e => e.textContent)")


def contrast(page):
    """Contrast ratio (WCAG) of the completions' text against their pane."""
    return page.evaluate("""() => {
        const element = document.createElement('canvas');
        const canvas = element.getContext('2d', { willReadFrequently: true });
        const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const light = (colour) => {
            canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
            const pixel = [...canvas.getImageData(0, 0, 1, 1).data];
            const [r, g, b] = pixel.map((v) => linear(v / 255));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const pane = document.querySelector('.shfcas-screen .pair .pane');
        const a = light(getComputedStyle(pane.querySelector('.text')).color);
        const b = light(getComputedStyle(pane).backgroundColor);
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }""")


def rows(stage):
    with LabelStore(stage / "shf_cas" / "labels.sqlite") as store:
        return store.rows()


def test_a_person_labels_a_run_in_jupyterlab(lab, page, tmp_path):
    address, notebook, stage, server = lab
    texts = {"".join(part for part, _ in visible(raw)) for raw in tiny_run.HOSTILE}
    run_all(page, address)
    cells = page.locator(".jp-Notebook .jp-Cell").count()
    assert (
        facts(page)["done"] == 0
        and "wait for a person" in page.locator(".jp-Notebook").inner_text()
    )
    assert contrast(page) > 7
    page.locator(SCREEN).screenshot(path=tmp_path / "light.png")

    # The keyboard. Letters that are no answer must reach neither the store nor JupyterLab (d d
    # deletes a cell there).
    page.locator(f"{SCREEN} .title").click()
    page.wait_for_timeout(300)
    for key in ("d", "d", "x", "a", "0", "0"):
        page.keyboard.press(key)
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells and len(rows(stage)) == 0
    seen = []
    # Shift says nothing where answers are not graded.
    for key in ("ArrowLeft", "Shift+ArrowRight", "="):
        seen += shown(page)
        press(page, key)
    assert facts(page)["done"] == 3 and rows(stage)["grade"].isna().all()

    # The mouse; a double click answers once.
    seen += shown(page)
    click(page, "Left is better")
    seen += shown(page)
    act(page, lambda: page.locator(f"{SCREEN} .choices button", has_text="Both bad").dblclick())
    page.wait_for_timeout(500)
    assert facts(page)["done"] == 5 and len(rows(stage)) == 5

    # Undo; then a note, whose letters are letters.
    assert press(page, "u")["done"] == 4 and rows(stage)["answer"].tolist()[-1] == "undo"
    page.keyboard.press("n")
    page.keyboard.type("b = s u <i>")
    page.keyboard.press("Enter")
    assert facts(page)["done"] == 4
    assert press(page, "b")["done"] == 5 and rows(stage)["note"].tolist()[-1] == "b = s u <i>"

    # The page is loaded anew, in the dark theme: the same place.
    request(
        address,
        "/lab/api/settings/@jupyterlab/apputils-extension:themes",
        "PUT",
        {"raw": '{"theme": "JupyterLab Dark"}'},
    )
    before = shown(page)
    page.reload()
    run_all(page, address)
    assert facts(page)["done"] == 5 and shown(page) == before
    assert contrast(page) > 7
    page.locator(SCREEN).screenshot(path=tmp_path / "dark.png")

    # The kernel dies without warning, right after an answer was confirmed.
    page.locator(f"{SCREEN} .title").click()
    press(page, "ArrowLeft")
    stored = rows(stage)
    before = shown(page)
    os.kill(kernel_of(server), signal.SIGKILL)
    page.locator(".jp-Dialog").get_by_role("button").last.click()
    run_all(page, address)
    pd.testing.assert_frame_equal(rows(stage), stored)
    assert facts(page)["done"] == 6 and shown(page) == before

    # To the end: the rest of this round, the round after it, by mouse and keys in turn.
    page.locator(f"{SCREEN} .title").click()
    for turn in range(40):
        now = facts(page)
        if now["state"] == "done":
            break
        if now["state"] == "review":
            press(page, "Enter")
            page.wait_for_function(
                "css => document.querySelector(css).dataset.state !== 'busy'", arg=SCREEN
            )
        elif turn % 2:
            seen += shown(page)
            click(page, "Right is better")
        else:
            seen += shown(page)
            press(page, "ArrowRight")
    assert (
        facts(page)["state"] == "done" and "reward is refined" in page.locator(SCREEN).inner_text()
    )
    said = page.locator(f"{SCREEN} .estimate")
    assert said.inner_text().startswith("The proxy is right on ") and said.is_visible()

    # Everything was text: every completion came out as it went in, and nothing in it ran or
    # became an element.
    assert set(seen) == texts
    assert page.evaluate("window.shfcas_hacked") is None
    assert page.locator(f"{SCREEN} :is(script, img, svg, a, iframe, b, i)").count() == 0

    # Nothing lost, nothing doubled; the notebook goes through, and what it exports is what was
    # said.
    table = rows(stage)
    assert (
        (table["answer"] == "undo").sum() == 1
        and set(table["annotator"]) == {"anna"}
        and table["latency"].dropna().gt(0.2).all()
    )
    with LabelStore(stage / "shf_cas" / "labels.sqlite") as store:
        assert (
            len(store.labels()) == 12
            and store.by_annotator()["repeat"].sum() == 2
            and len(store.by_annotator()) == 14
        )
    run_all(page, address)
    page.wait_for_function(
        "() => document.querySelector('.jp-Notebook').innerText.includes('shf_cas: 12 labels')"
    )
    assert (stage / "metrics.json").exists() and len(
        pd.read_parquet(stage / "shf_cas" / "export" / "labels.parquet")
    ) == 12


GRADED = {
    "feedback": {"kind": "person", "graded": True},
    "selection": {"strategies": ["shf_cas"], "budget": 8, "rounds": 1},
}
OVERFLOW = """css => [...document.querySelectorAll(css)].filter(
    (button) => button.scrollWidth > button.clientWidth + 1).length"""


@pytest.mark.parametrize("changes", [GRADED])
def test_a_person_says_how_much_better(lab, page, tmp_path):
    address, _, stage, _ = lab
    run_all(page, address)
    buttons = f"{SCREEN} .choices button"

    # The order on the page, what a screen reader says, and nothing cut off, wide and narrow.
    names = ["Left is much better", "Left is better", "Right is better", "Right is much better"]
    names += ["Tie", "Both bad", "Skip"]
    group = page.locator(SCREEN).get_by_role("group", name="Your answer")
    assert [
        group.get_by_role("button", name=name, exact=True).get_attribute("aria-keyshortcuts")
        for name in names
    ] == ["Shift+ArrowLeft", "ArrowLeft", "ArrowRight", "Shift+ArrowRight", "=", "b", "s"]
    assert page.locator(f"{buttons} span").all_inner_texts() == names
    for width in (1400, 1200, 1000, 620):
        page.set_viewport_size({"width": width, "height": 1150})
        page.wait_for_timeout(300)
        page.locator(SCREEN).screenshot(path=tmp_path / f"graded_{width}.png")
        assert page.evaluate(OVERFLOW, buttons) == 0
    page.set_viewport_size({"width": 1400, "height": 1150})

    # The keys, and their list.
    page.locator(f"{SCREEN} .title").click()
    page.keyboard.press("?")
    assert "Left is much better" in page.locator(f"{SCREEN} .help").inner_text()
    page.keyboard.press("Escape")
    for key in ("Shift+ArrowLeft", "ArrowLeft", "Shift+ArrowRight", "ArrowRight"):
        press(page, key)
    assert rows(stage)["grade"].tolist() == [2, 1, 2, 1]

    # Going back shows the grade; a changed one replaces it, and undo brings it back.
    press(page, "p")
    press(page, "p")
    given = page.locator(f"{buttons}[aria-pressed=true]")
    assert given.locator("span").inner_text() == "Right is much better"
    assert "given" in page.locator(f"{SCREEN} .pair .pane").last.get_attribute("class")
    click(page, "Right is better")
    press(page, "u")
    assert given.locator("span").inner_text() == "Right is much better"
    press(page, "c")

    # By mouse, to the end; the notebook goes through and the margins are in the export.
    click(page, "Left is much better")
    page.wait_for_timeout(300)
    press(page, "=")
    for _ in range(10):
        now = facts(page)["state"]
        if now == "done":
            break
        if now == "review":
            press(page, "Enter")
            page.wait_for_function(
                "css => document.querySelector(css).dataset.state !== 'busy'", arg=SCREEN
            )
        else:
            press(page, "Shift+ArrowRight")
    with LabelStore(stage / "shf_cas" / "labels.sqlite") as store:
        labels = store.labels()
    assert len(labels) == 8 and labels["grade"].isna().sum() == (labels["answer"] == "tie").sum()
    run_all(page, address)
    page.wait_for_function(
        "() => document.querySelector('.jp-Notebook').innerText.includes('shf_cas: 8 labels')"
    )
    exported = pd.read_parquet(stage / "shf_cas" / "export" / "preferences.parquet")
    assert sorted(exported["margin"]) == sorted(labels["grade"].dropna() - 1)


def kernel_of(server):
    """The process of the one kernel that this test's own server started."""
    import psutil

    kernels = [
        child.pid
        for child in psutil.Process(server.pid).children(recursive=True)
        if "ipykernel_launcher" in " ".join(child.cmdline())
    ]
    assert len(kernels) == 1
    return kernels[0]
