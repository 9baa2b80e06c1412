"""The labeller in a real browser: JupyterLab with a live kernel, driven by keyboard, the kernel killed half-way."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

from dpo_core.course.verdicts import Comparison
from dpo_core.course.widgets.pair_labeler import PairLabeler

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ATTACKS = [
    "<script>window.hacked = 'script'</script>",
    "<img src=x onerror=\"window.hacked = 'img'\">",
    "</script><svg onload=\"window.hacked = 'svg'\">",
    "${window.hacked = 'template'} {{constructor.constructor('window.hacked=1')()}}",
    '"><iframe srcdoc="<script>parent.hacked = \'frame\'</script>"></iframe>',
    "[link](javascript:window.hacked='link') <a href='javascript:window.hacked=1'>a</a>",
    "\u202eright to left \ud83d half",
]
CELL = """
import json, os
from pathlib import Path
from dpo_core.course.verdicts import Comparison
from dpo_core.course.widgets.pair_labeler import PairLabeler
Path("pid").write_text(str(os.getpid()))
attacks = json.loads(Path("attacks.json").read_text())
labeler = PairLabeler("labels.jsonl", [Comparison(a, a + " one", a + " two") for a in attacks], rubric=attacks[1])
labeler
"""


def events(folder: Path) -> list[str]:
    """Verdicts and undos in the file."""
    lines = map(json.loads, (folder / "labels.jsonl").read_text().splitlines())
    return [line.get("verdict", line["event"]) for line in lines if line["event"] in ("verdict", "undo", "second pass")]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "attacks.json").write_text(json.dumps(ATTACKS))
    cells = [nbformat.v4.new_code_cell(CELL.strip()), nbformat.v4.new_code_cell("1 + 1")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "label.ipynb")
    return tmp_path


@pytest.fixture
def lab(folder):
    """The address of a JupyterLab of its own."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: pip install jupyterlab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    private = folder / "private"
    places = {f"JUPYTER_{name}_DIR": str(private / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    options = [f"--ServerApp.port={port}", "--ServerApp.token=t", f"--ServerApp.root_dir={folder}", "--no-browser"]
    command = [sys.executable, "-m", "jupyterlab", *options, "--allow-root", "--LabApp.news_url=", "--log-level=WARN"]
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | places, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            time.sleep(0.5)
            try:
                urllib.request.urlopen(f"{address}/api?token=t", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "lab.log").read_text()
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def kernels(lab: str) -> list[dict]:
    """The server's kernels; none while one of them starts, about which it answers with an error of its own."""
    try:
        with urllib.request.urlopen(f"{lab}/api/kernels?token=t", timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code != 500:
            raise
        return []


@pytest.fixture
def page(lab, chromium):
    """The notebook, open and with its kernel ready; what is asked for from outside is noted."""
    page = chromium.new_page()
    page.set_default_timeout(60_000)
    page.outside = []
    page.on("request", lambda r: re.match(r"http://127\.|data:|blob:", r.url) or page.outside.append(r.url))
    page.goto(f"{lab}/lab/tree/label.ipynb?token=t")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    until(lambda: [kernel["execution_state"] for kernel in kernels(lab)] == ["idle"])
    yield page
    page.close()


def until(condition) -> None:
    for _ in range(240):
        if condition():
            return
        time.sleep(0.25)
    raise AssertionError("waited a minute in vain")


def run_first_cell(page):
    """The labeller that it shows."""
    page.locator(".jp-Notebook .jp-Cell").first.locator(".cm-content, .CodeMirror").first.click()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+Enter")
    card = page.locator(".dpo-labeler")
    card.wait_for()
    return card


def press(page, key: str) -> float:
    """Press a key, wait for the next picture, and return the seconds that took."""
    card = page.locator(".dpo-labeler")
    before = card.inner_text()
    start = time.monotonic()
    page.keyboard.press(key)
    page.wait_for_function("([node, text]) => node.innerText !== text", arg=[card.element_handle(), before])
    return time.monotonic() - start


def test_labelling_by_keyboard_survives_a_killed_kernel(folder, lab, page):
    card = run_first_cell(page)
    assert "Pair 1 of 7" in card.inner_text()

    # By keyboard, half of it; an undo in between, and keys that JupyterLab would act upon.
    card.focus()
    seconds = [press(page, key) for key in ("ArrowLeft", "t", "ArrowRight", "u", "s")]
    assert events(folder) == ["left", "tie", "right", "undo", "skip"]
    for key in ("x", "d", "d", "b", "ArrowDown", "Control+ArrowLeft"):
        page.keyboard.press(key)
    assert events(folder) == ["left", "tie", "right", "undo", "skip"]
    assert page.locator(".jp-Notebook .jp-Cell").count() == 2
    assert card.evaluate("node => node.contains(document.activeElement)")
    assert "Pair 4 of 7" in card.inner_text()

    # The kernel dies. What is pressed now is not saved, and that is said.
    shown = card.inner_text()
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
    page.keyboard.press("ArrowLeft")
    page.get_by_text("No answer from the kernel").wait_for()
    assert "Pair 4 of 7" in shown and len(events(folder)) == 5

    # JupyterLab starts another kernel; the same cell goes on where it stopped.
    until(lambda: [kernel["execution_state"] for kernel in kernels(lab)] == ["idle"])
    for name in ("Ok", "OK", "Dismiss"):
        if (button := page.locator(".jp-Dialog button", has_text=name)).count():
            button.first.click()
    card = run_first_cell(page)
    page.get_by_text("was cut off; all that it saved is here").wait_for()
    assert "Pair 4 of 7" in card.inner_text()
    card.focus()
    seconds += [press(page, key) for key in ("ArrowRight", "ArrowLeft", "t", "ArrowLeft")]
    assert events(folder)[5:] == ["right", "left", "tie", "left"]
    assert "7 of 7 judged" in card.inner_text()

    # The rest by Tab and Enter: second pass, then the export.
    page.get_by_role("button", name="Second pass").focus()
    seconds.append(press(page, "Enter"))
    assert card.evaluate("node => node === document.activeElement")  # not lost with the button that vanished
    seconds += [press(page, "ArrowLeft") for _ in range(6)]
    assert re.search(r"the same verdict twice on \d of 6 pairs", card.inner_text())
    page.get_by_role("button", name="Export the pairs").focus()
    page.keyboard.press("Enter")
    page.get_by_text("Written to labels.pairs.jsonl").wait_for()

    # Nothing of the hostile text ran, and all of it is there as text.
    assert page.evaluate("window.hacked") is None
    assert card.locator("img, script, svg, iframe, a").count() == 0
    page.wait_for_timeout(500)
    print(f"{len(seconds)} keys, median {sorted(seconds)[len(seconds) // 2] * 1000:.0f} ms to the next picture")
    assert page.outside == []


def test_hostile_text_is_shown_as_text(page):
    card = run_first_cell(page)
    card.focus()
    for attack in ATTACKS:
        prompt = card.get_by_role("group", name="Prompt").text_content()
        assert prompt == attack.encode("utf-8", "replace").decode()
        assert page.evaluate("window.hacked") is None
        press(page, "ArrowRight")
    assert card.locator("img, script, svg, iframe, a").count() == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_without_a_kernel_is_for_practice(tmp_path, chromium, theme):
    asked = [Comparison(attack, f"{attack} one", f"{attack} two") for attack in ATTACKS]
    labeler = PairLabeler(tmp_path / "labels.jsonl", asked)
    body = labeler._repr_mimebundle_()[0]["text/html"]
    labeler.session.close()
    file = tmp_path / "page.html"
    file.write_text(f'<!doctype html><html lang="en" data-theme="{theme}"><meta charset="utf-8"><body>{body}', "utf-8")
    page = chromium.new_page(viewport={"width": 390, "height": 900})
    troubles = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: request.url == file.as_uri() or troubles.append(request.url))
    page.goto(file.as_uri())
    page.keyboard.press("Tab")
    for number, key in enumerate(["ArrowLeft", "u", "ArrowRight", "t", "s", "ArrowLeft", "ArrowLeft", "t"]):
        assert page.locator(".dpo-labeler").evaluate("node => node.contains(document.activeElement)"), number
        page.keyboard.press(key)
    page.get_by_role("button", name="Left is better").click()
    assert "7 of 7 judged. left 3, right 1, tie 2, skip 1." in page.get_by_role("status").inner_text()
    assert not page.get_by_role("button", name="Left is better").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("window.hacked") is None and troubles == []
    page.close()
