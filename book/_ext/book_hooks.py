"""Sphinx extension of the book: where its buttons point, and nothing on a page that it does not need."""

from __future__ import annotations

import os
import re
import shutil
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

UNUSED = (  # in the theme's style sheets: Font Awesome's fonts and glyphs, and the link to a source map
    r"@font-face\{[^}]*Font Awesome[^}]*\}"
    r"|(?:\.fa-[\w-]+:{1,2}before,?)+\{content:\"[^\"]*\"\}"
    r"|/\*# sourceMapping.*?\*/"
)
BUTTONS = ("use_repository_button", "use_issues_button", "use_edit_page_button")


def point_buttons(app: Any, config: Any) -> None:
    """Turn the buttons on and point them to the repository that is built; without an address leave none.

    On GitHub the environment names the repository; elsewhere ``_config.yml`` does once ``make address`` was run. Until
    then a notebook on Colab or Binder could not install ``dpo_core``, so no button leads there.
    """
    options = config.html_theme_options
    if not options.get("repository_url"):
        options["launch_buttons"] = {}
    if name := os.environ.get("GITHUB_REPOSITORY"):
        options["repository_url"] = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}"
        if os.environ.get("GITHUB_EVENT_NAME") == "push":  # in a pull request the ref is no branch
            options["repository_branch"] = os.environ["GITHUB_REF_NAME"]
    if options.get("repository_url"):
        options.update(dict.fromkeys(BUTTONS, True))


def offer_report(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Put a link into each page's footer for those who find a mistake.

    Where the repository's address is known, it opens an issue that names the page; elsewhere it leads to the page that
    says how to check a claim and what to send.
    """
    address = app.config.html_theme_options.get("repository_url")
    if address and "github.com" in address:
        target = f"{address}/issues/new?title={quote(f'Mistake on the page {page}')}"
    else:
        target = context["pathto"]("book/using").removesuffix("#") + "#found-a-mistake"  # "#" on that page itself
    context["theme_extra_footer"] = f'<p><a href="{escape(target)}">Report a mistake on this page</a></p>'


def drop_scripts(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave out what would call for a server (thebe, states of widgets), and all but the first of equal inline scripts.

    Two ``const`` of one name stop a page's scripts. The style sheet of sphinx-design is for pages with its grids.
    """
    seen: set[str] = set()
    kept = []
    for script in context.get("script_files", []):
        attributes = getattr(script, "attributes", {})
        body = attributes.get("body") or ""
        unwanted = "thebe" in body.lower() or "thebe" in str(script) or "design-tabs" in str(script)
        unwanted = unwanted or "widget-state" in (attributes.get("type") or "")
        if not unwanted and (not body or body not in seen):
            kept.append(script)
        seen.add(body)
    context["script_files"][:] = kept
    grids = "sd-" in context.get("body", "")
    styles = context.get("css_files", [])
    styles[:] = [s for s in styles if "thebe" not in str(s) and (grids or "sphinx-design" not in str(s))]


def slim_theme(app: Any, failure: Exception | None) -> None:
    """Take Font Awesome (2.5 MB) and source maps out of what was built; ``course.css`` draws the dozen icons."""
    if failure or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    shutil.rmtree(static / "vendor" / "fontawesome", ignore_errors=True)
    for pattern in ("scripts/fontawesome*", "scripts/*.map", "styles/*.map"):
        for file in static.glob(pattern):
            file.unlink()
    for file in (static / "styles").glob("*.css"):
        text = file.read_text(encoding="utf-8")
        file.write_text(re.sub(UNUSED, "", text), encoding="utf-8")
    for file in (static / "scripts").glob("*.js"):
        text = file.read_text(encoding="utf-8")
        file.write_text(re.sub(r"//# sourceMappingURL=.*", "", text), encoding="utf-8")


def setup(app: Any) -> dict[str, Any]:
    app.connect("config-inited", point_buttons, priority=100)  # before the theme reads its options
    app.connect("html-page-context", offer_report, priority=900)
    app.connect("html-page-context", drop_scripts, priority=900)  # after everyone has added theirs
    app.connect("build-finished", slim_theme, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
