"""Bring what pages and browser tests need from other projects into the tree: ``python tools/vendor.py``.

Every folder gets a ``vendored.json`` with package, version, licence and the SHA-256 of each file, which
``tests/test_vendor.py`` compares with what lies there. To update, change a version below, run this, and look at the
diff. It needs npm and the network; building and reading the book need neither.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
STATIC = "book/_static/vendor"


class Package(NamedTuple):
    """``files`` maps a path in the package to one in ``folder``; a folder stands for all that lies in it."""

    folder: str
    name: str
    version: str
    licence: str
    files: dict[str, str]


def _fontsource(name: str, *files: str) -> Package:
    wanted = {f"files/{name}-{file}.woff2": f"{file}.woff2" for file in files} | {"LICENSE": "LICENSE"}
    return Package(f"{STATIC}/{name}", f"@fontsource-variable/{name}", FONTS[name], "OFL-1.1", wanted)


FONTS = {"source-serif-4": "5.3.1", "source-sans-3": "5.3.0", "source-code-pro": "5.3.0"}
MATHJAX = (  # the parts of tex-chtml that the book uses; the whole is 1.2 MB, half of it menus and spoken formulas
    "startup.js",
    "core.js",
    "input/tex.js",
    "input/tex/extensions/boldsymbol.js",
    "input/tex/extensions/cancel.js",
    "input/tex/extensions/color.js",
    "output/chtml.js",
    "output/chtml/fonts/tex.js",
    "output/chtml/fonts/woff-v2",
    "a11y/assistive-mml.js",
)
PACKAGES = (
    Package(
        f"{STATIC}/mathjax3",
        "mathjax",
        "3.2.2",
        "Apache-2.0",
        {f"es5/{path}": path for path in MATHJAX} | {"LICENSE": "LICENSE"},
    ),
    _fontsource("source-serif-4", "latin-wght-normal", "latin-wght-italic", "greek-wght-normal"),
    _fontsource("source-sans-3", "latin-wght-normal", "greek-wght-normal"),
    _fontsource("source-code-pro", "latin-wght-normal", "greek-wght-normal"),
    Package(
        "tests/browser/vendor/axe-core",
        "axe-core",
        "4.14.1",
        "MPL-2.0",
        {"axe.min.js": "axe.min.js", "LICENSE": "LICENSE"},
    ),
)


def fetch(package: Package, folder: Path) -> Path:
    """Download and unpack a package with npm, which checks its integrity; returns the unpacked folder."""
    command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    archive = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split()[-1]
    with tarfile.open(folder / archive) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    return folder / "unpacked" / "package"


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a vendored folder, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "vendored.json")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def record(package: Package, folder: Path) -> dict[str, object]:
    """What ``vendored.json`` holds."""
    return {
        "package": package.name,
        "version": package.version,
        "licence": package.licence,
        "files": sums(folder),
    }


def update(package: Package) -> None:
    """Put the files of a package where they belong, and nothing else."""
    folder = ROOT / package.folder
    with tempfile.TemporaryDirectory() as temporary:
        unpacked = fetch(package, Path(temporary))
        declared = json.loads((unpacked / "package.json").read_text("utf-8"))["license"]
        if declared != package.licence:
            raise SystemExit(f"{package.name} {package.version} is under {declared}, not {package.licence}")
        shutil.rmtree(folder, ignore_errors=True)
        for source, target in package.files.items():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (unpacked / source).is_dir() else shutil.copyfile
            copy(unpacked / source, folder / target)
    text = json.dumps(record(package, folder), indent=1)
    (folder / "vendored.json").write_text(text + "\n", encoding="utf-8")
    print(f"{package.name} {package.version} ({package.licence}) in {package.folder}")


if __name__ == "__main__":
    for entry in PACKAGES:
        update(entry)
