"""The book, built once for all browser tests, and pages of it in which nothing may go wrong."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Book:
    """Where the built pages lie, and what the build said."""

    folder: Path
    status: int
    log: str

    @property
    def pages(self) -> list[str]:
        """Every page but the technical ones, as a path in the folder."""
        skipped = {"genindex.html", "search.html", "index.html", "py-modindex.html", "print.html"}
        found = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.html"))
        return [page for page in found if page not in skipped and not page.startswith(("_modules", "_static"))]


@pytest.fixture(scope="session")
def book(tmp_path_factory, chromium) -> Book:
    """The book from stored outputs, built with the packages of ``make book`` alone, once for all processes of tests."""
    pytest.importorskip("jupyter_book", reason="the book's tools are not installed: pip install -r requirements.txt")
    if built := os.environ.get("BOOK_HTML"):  # while one works on pages: a build that is there already
        return Book(Path(built), 0, "")
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    out = shared / "book"
    done = out / "status"
    out.mkdir(exist_ok=True)
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            program = [sys.executable, str(ROOT / "tests" / "book_packages_only.py"), "jupyter-book"]
            command = [*program, "build", str(ROOT), "--path-output", str(out)]
            environment = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
            run = subprocess.run([*command, "-W", "--keep-going"], env=environment, capture_output=True, text=True)
            (out / "log").write_text(run.stdout + run.stderr, encoding="utf-8")
            done.write_text(str(run.returncode))
    return Book(out / "_build" / "html", int(done.read_text()), (out / "log").read_text(encoding="utf-8"))


@dataclass
class Visit:
    """A page in the browser; ``troubles`` are errors, warnings and requests that left the book."""

    page: Page
    troubles: list[str] = field(default_factory=list)
    weight: dict[str, int] = field(default_factory=dict)


LONG_TASKS = """() => {
    window.lastLongTask = 0;
    new PerformanceObserver(list => {
        for (const task of list.getEntries()) window.lastLongTask = task.startTime + task.duration;
    }).observe({type: "longtask", buffered: true});
}"""


def open_page(chromium, root: str, path: str, width: int = 1280, theme: str = "light") -> Visit:
    """A page of the book with nothing but the book within reach, once its formulas are drawn."""
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    context.set_default_timeout(300_000)  # for machines with more to do
    context.add_init_script(f"({LONG_TASKS})()")
    seen = Visit(context.new_page())

    def refuse(route):
        seen.troubles.append(f"asked for {route.request.url}")
        route.abort()

    def weigh(response):
        seen.weight[response.url.removeprefix(root).partition("?")[0].strip("/")] = len(response.body())

    seen.page.route(lambda url: not url.startswith((root, "data:", "blob:")), refuse)
    if root.startswith("http"):
        seen.page.on("response", weigh)
    seen.page.on("console", lambda said: said.type in ("error", "warning") and seen.troubles.append(said.text))
    seen.page.on("pageerror", lambda error: seen.troubles.append(str(error)))
    seen.page.on("requestfailed", lambda request: seen.troubles.append(f"failed: {request.url}"))
    seen.page.goto(f"{root}/{path}")
    seen.page.evaluate("() => window.MathJax?.startup?.promise")
    return seen


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def site(book, tmp_path_factory) -> Iterator[str]:
    """The book on a server of its own, below a path, as on GitHub Pages; answers nothing else."""
    below = tmp_path_factory.mktemp("site")
    (below / "course").symlink_to(book.folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(below)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/course"
    server.shutdown()


@pytest.fixture(scope="session")
def opened(chromium):
    """``open_page`` in the session's browser."""
    return partial(open_page, chromium)


@pytest.fixture
def visit(book, opened):
    """Opens a page of the book from disk, or from ``site``; in the end nothing may have gone wrong."""
    visits = {}

    def visit(path: str, *, site: str = "", **options) -> Visit:
        visits[path] = opened(site or book.folder.as_uri(), path, **options)
        return visits[path]

    yield visit
    for seen in visits.values():
        seen.page.context.close()
    assert {path: seen.troubles for path, seen in visits.items() if seen.troubles} == {}
