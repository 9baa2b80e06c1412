"""Live figures that need no kernel, no network and no file beside the page.

The ES module stands in the output itself. A page opened from disk may not load a module from a file, and Jupyter, Colab
and VS Code serve none of ours, but all of them run a module that is written into the HTML.
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

__all__ = ["embed", "sources"]

IMPORT = re.compile(r'^import \{[^}]*\} from "\./kit\.js";\n', re.MULTILINE)


def sources(module: str) -> list[Path]:
    """List the files of which a figure is made: what all share, its module, and the style.

    Args:
        module: as in ``embed``.
    """
    folder = Path(__file__).parent
    return [folder / "kit.js", folder / f"{module}.js", folder / "widgets.css"]


def embed(module: str, state: dict[str, Any], summary: str) -> str:
    """Make HTML of a figure's module, style and data; it comes alive wherever HTML runs scripts.

    Args:
        module: name of a file beside this one, without ``.js``; it exports ``render(host, state)``.
        state: what it draws, as JSON can hold it.
        summary: what stands there as long as no script has run, as on GitHub.

    >>> "\\\\u003cb>" in embed("loss_explorer", {"text": "<b>"}, "A curve.")
    True
    """
    kit, code, css = (file.read_text("utf-8") for file in sources(module))
    data = json.dumps(state, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")  # no tag can end the script
    figure = (
        f'<div class="dpo-widget mathjax_ignore" data-dpo="{module}"><script type="application/json">{data}</script>'
        f"<p>{escape(summary)}</p></div>\n<style>\n{css}</style>\n"
        f'<script type="module">\n{kit}\n{IMPORT.sub("", code)}\nmount("{module}", render);\n</script>'
    )
    # Half a character has no UTF-8, and an output that cannot be encoded is lost; in JSON this is its escape.
    return figure.encode("utf-8", "backslashreplace").decode()
