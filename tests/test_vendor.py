"""What was taken from other projects is what its ``vendored.json`` says, byte for byte, with its licence beside it."""

import json

import pytest
import vendor


@pytest.mark.parametrize("package", vendor.PACKAGES, ids=lambda package: package.name)
def test_vendored_files_are_those_of_their_version(package):
    folder = vendor.ROOT / package.folder
    known = json.loads((folder / "vendored.json").read_text(encoding="utf-8"))
    assert known == vendor.record(package, folder)
    assert "LICENSE" in known["files"]


def test_nothing_else_is_vendored():
    static = vendor.ROOT / vendor.STATIC
    assert {path.name for path in static.iterdir()} == {
        package.folder.rpartition("/")[2] for package in vendor.PACKAGES if package.folder.startswith(vendor.STATIC)
    }
