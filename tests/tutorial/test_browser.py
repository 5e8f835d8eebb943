"""The notebook as a reader opens it: JupyterLab in Chromium, Run All Cells, the panel moved.

The screenshots are left in the folder that REPORT_DIR names, by default report/, to be looked at.
images/panel.png is the report's panel.png from a run on the full data: NOTEBOOK_FAST=0.
"""

import json
import os
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell
from test_notebook import NEEDED, NOTEBOOK, ROOT, code_cells, kernel_environment, with_parameters

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NAMES = (os.environ.get("CHROMIUM", "chromium"), "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",  # a container's user is often root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FAST = os.environ.get("NOTEBOOK_FAST", "1") != "0"
START_SECONDS = 90  # until JupyterLab has drawn the notebook
RUN_SECONDS = 900  # a busy machine takes many times as long as a quiet one
VIEW = {"width": 1280, "height": 1300}  # pixels
ERRORS = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]'
STDERR = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]'
FIGURES = ".jp-OutputArea-output img"
PANEL = ".jp-OutputArea-output .widget-vbox"


def prepared_notebook(**parameters):
    """The notebook without outputs, with the parameters, and with the panel if it has none."""
    notebook = with_parameters(nbformat.read(NOTEBOOK, as_version=4), **parameters)
    if not any("pu.explore(" in cell.source for cell in code_cells(notebook)):
        notebook.cells.append(new_markdown_cell("## Try it yourself"))
        notebook.cells.append(new_code_cell("pu.explore(network, data)"))
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    return notebook


@pytest.fixture(scope="module")
def report() -> Path:
    folder = Path(os.environ.get("REPORT_DIR") or ROOT / "report")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("notebook-*.png"):
        old.unlink()
    return folder


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory) -> Path:
    """What a clone of the repository holds, as far as the notebook needs it."""
    folder = tmp_path_factory.mktemp("lab")
    for name in NEEDED[1:]:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    parameters = {"FAST": FAST}
    if not prepared_data(request):
        parameters["DATASETS"] = ("digits",)
    nbformat.write(prepared_notebook(**parameters), folder / NOTEBOOK.name)
    return folder


def prepared_data(request) -> str | None:
    try:
        return str(request.getfixturevalue("shared_data"))
    except pytest.skip.Exception:
        return None


@dataclass(frozen=True)
class Server:
    """JupyterLab on a port of this computer that nobody else can open."""

    url: str
    token: str

    def kernel_state(self) -> str:
        """State of the only kernel: "starting", "busy", "idle", or "none" before there is one."""
        headers = {"Authorization": f"token {self.token}"}
        asked = urllib.request.Request(f"{self.url}/api/sessions", headers=headers)
        with urllib.request.urlopen(asked, timeout=10) as answer:
            sessions = json.load(answer)
        return sessions[0]["kernel"]["execution_state"] if sessions else "none"


@pytest.fixture(scope="module")
def server(request, folder, tmp_path_factory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    changes = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "RUNTIME")}
    changes |= {f"JUPYTERLAB_{kind}_DIR": str(home / kind) for kind in ("SETTINGS", "WORKSPACES")}
    if data := prepared_data(request):
        changes["TFDS_DATA_DIR"] = data
    settings = {
        # All cells are on the page, also those that are scrolled away.
        "SETTINGS/@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {
            "windowingMode": "none"
        },
        # No question about news in front of the screenshots.
        "config/labconfig/page_config.json": {
            "disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}
        },
    }
    for name, content in settings.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(json.dumps(content), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    command += [f"--ServerApp.root_dir={folder}"]
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=kernel_environment(**changes), stdout=log, stderr=log
        )
    try:
        server = Server(f"http://127.0.0.1:{port}", token)
        wait_for(lambda: process.poll() is not None or answers(server), START_SECONDS)
        assert process.poll() is None, (home / "log").read_text()
        yield server
    finally:
        process.terminate()  # the kernels end with it
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def answers(server: Server) -> bool:
    try:
        return bool(server.kernel_state())
    except OSError:
        return False


def wait_for(condition, seconds: float, every: float = 0.2) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still waiting after {seconds} s"
        time.sleep(every)


@pytest.fixture(scope="module")
def sync_api():
    """Playwright; the tests skip without it or without Chromium, but not in CI."""
    try:
        from playwright import sync_api
    except ImportError:
        missing("no playwright: pip install playwright")
    if not CHROMIUM:
        missing("no chromium: install it, or set CHROMIUM to its path")
    return sync_api


def missing(text: str) -> None:
    (pytest.fail if os.environ.get("CI") else pytest.skip)(text)


@pytest.fixture(scope="module")
def page(sync_api, server):
    """The notebook in JupyterLab, opened at `page.opened` (seconds of time.monotonic)."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport=VIEW)
        page.set_default_timeout(START_SECONDS * 1e3)  # milliseconds
        page.opened = time.monotonic()
        page.goto(f"{server.url}/lab/tree/{NOTEBOOK.name}?token={server.token}")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        yield page
        browser.close()


def prompts(page) -> list[str]:
    return page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").all_inner_texts()


@pytest.fixture(scope="module")
def ran(page, server, folder, report) -> dict[str, float]:
    """Run All Cells: seconds from opening JupyterLab to the accuracy figure and to the end."""
    notebook = nbformat.read(folder / NOTEBOOK.name, as_version=4)
    code = enumerate(notebook.cells)
    place = next(i for i, cell in code if "plot_accuracy_panels(" in cell.source)
    wait_for(lambda: server.kernel_state() == "idle", START_SECONDS)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    seconds = {}

    def ended() -> bool:
        figure = page.locator(".jp-Notebook .jp-Cell").nth(place).locator(FIGURES)
        if "figure" not in seconds and figure.count():
            seconds["figure"] = time.monotonic() - page.opened
        waiting = any(prompt in ("[*]:", "[ ]:") for prompt in prompts(page))
        stopped = waiting and page.locator(ERRORS).count()
        return server.kernel_state() == "idle" and (not waiting or stopped)

    try:
        wait_for(ended, RUN_SECONDS, every=0.5)
    finally:
        take_screenshots(page, report)
    seconds["end"] = time.monotonic() - page.opened
    return seconds


def take_screenshots(page, report: Path) -> None:
    """The whole notebook, one screenful after the other."""
    pane = page.locator(".jp-Notebook .jp-WindowedPanel-outer")
    height = pane.evaluate("e => e.clientHeight")
    end = pane.locator(".jp-Cell").last.evaluate("e => e.offsetTop + e.offsetHeight")
    for number in range(1, 2 + int(end / height)):
        pane.evaluate(f"e => e.scrollTop = {(number - 1) * height}")
        page.wait_for_timeout(300)  # milliseconds, until it is drawn
        page.screenshot(path=report / f"notebook-{number:02d}.png")


def test_every_cell_ran_once_in_order(ran, page, report, capsys):
    with capsys.disabled():
        kind = "FAST" if FAST else "full data"
        print(
            f"\nJupyterLab, {kind}: first accuracy figure {ran['figure']:.0f} s after opening, "
            f"end {ran['end']:.0f} s; screenshots in {report}"
        )
    shown = prompts(page)
    assert shown == [f"[{number}]:" for number in range(1, len(shown) + 1)]


def test_no_error_and_no_stderr_is_shown(ran, page):
    assert page.locator(ERRORS).all_inner_texts() == []
    assert page.locator(STDERR).all_inner_texts() == []


def test_every_figure_is_drawn(ran, page):
    widths = page.locator(FIGURES).evaluate_all("all => all.map(e => e.naturalWidth)")
    assert len(widths) >= 8
    assert min(widths) > 0


def test_every_picture_of_the_text_is_found(ran, page):
    # Badges come from the network; what stands beside the notebook must be there.
    pictures = page.locator(".jp-MarkdownOutput img").evaluate_all(
        "all => all.map(e => [e.getAttribute('src'), e.naturalWidth, e.alt])"
    )
    local = [
        picture for picture in pictures if "://" not in picture[0] or "127.0.0.1" in picture[0]
    ]
    assert [source for source, width, _ in local if not width] == []
    assert [source for source, _, alt in pictures if not alt] == []


def test_the_live_panel_stands_alone_without_its_picture(ran, page):
    cell = page.locator(".jp-Notebook .jp-Cell", has=page.locator(PANEL))
    assert cell.locator(".jp-OutputArea-output .noUi-handle").count() == 2  # sparsity, image
    assert cell.locator(".jp-RenderedImage").count() == 0


def test_the_panel_follows_the_slider(ran, page, report, capsys):
    panel = page.locator(PANEL)
    panel.scroll_into_view_if_needed()
    panel.screenshot(path=report / "panel.png")

    def weights_left() -> str:
        return re.search(r"weights left\s+([\d,]+)", panel.inner_text())[1]

    handle = panel.locator(".noUi-handle").first
    box, before = handle.bounding_box(), weights_left()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] - 100, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    wait_for(lambda: weights_left() != before, 10, every=0.02)
    settle(weights_left)

    seconds = []
    for _ in range(10):
        before, start = weights_left(), time.monotonic()
        handle.press("ArrowLeft")
        wait_for(lambda before=before: weights_left() != before, 10, every=0.005)
        seconds.append(time.monotonic() - start)
    panel.locator("select").first.select_option("units")
    settle(weights_left)
    panel.screenshot(path=report / "panel-units.png")
    with capsys.disabled():
        print(f"\npanel in the browser: a move is seen after {statistics.median(seconds):.2f} s")


def settle(read) -> None:
    """Waits until the text stays as it is for a second."""
    last, since = read(), time.monotonic()
    while time.monotonic() - since < 1:
        time.sleep(0.1)
        if read() != last:
            last, since = read(), time.monotonic()
