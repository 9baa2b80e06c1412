"""Gives Python the code in ``$PLANTED`` for the modules that have a file there; imported when Python starts."""

import marshal
import os
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from sys import meta_path
from types import CodeType


class Planted(SourceFileLoader):
    """Loads the planted code as if it came from the module's own file."""

    def get_code(self, fullname: str) -> CodeType:
        return marshal.loads((Path(os.environ["PLANTED"]) / fullname).read_bytes())


class Finder(PathFinder):
    """Finds the modules for which there is planted code."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None) -> ModuleSpec | None:  # type: ignore[no-untyped-def]
        if not (Path(os.environ.get("PLANTED", os.devnull)) / fullname).is_file():
            return None
        spec = super().find_spec(fullname, path, target)
        if spec and spec.origin:
            spec.loader = Planted(fullname, spec.origin)
        return spec


meta_path.insert(0, Finder)
