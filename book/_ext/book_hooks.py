"""Sphinx extension of the book: where its buttons point, and one copy of each script on a page."""

from __future__ import annotations

import os
from typing import Any

BUTTONS = ("use_repository_button", "use_issues_button", "use_edit_page_button")


def point_buttons(app: Any, config: Any) -> None:
    """Turn the buttons on and point them to the repository that is built; without an address leave none.

    On GitHub the environment names the repository; elsewhere ``_config.yml`` does once ``make address`` was run.
    """
    options = config.html_theme_options
    if name := os.environ.get("GITHUB_REPOSITORY"):
        options["repository_url"] = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}"
        if os.environ.get("GITHUB_EVENT_NAME") == "push":  # in a pull request the ref is no branch
            options["repository_branch"] = os.environ["GITHUB_REF_NAME"]
    if options.get("repository_url"):
        options.update(dict.fromkeys(BUTTONS, True))
    else:
        options["launch_buttons"] = {}


def drop_repeated_scripts(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Keep the first of equal inline scripts; two ``const`` of one name stop a page's scripts."""
    seen: set[str] = set()
    kept = []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body") or ""
        if not body.startswith("const ") or body not in seen:
            kept.append(script)
        seen.add(body)
    context["script_files"][:] = kept


def setup(app: Any) -> dict[str, Any]:
    app.connect("config-inited", point_buttons, priority=100)  # before the theme reads its options
    app.connect("html-page-context", drop_repeated_scripts, priority=900)  # after everyone has added theirs
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
