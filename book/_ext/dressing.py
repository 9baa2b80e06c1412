"""Gives the parts that recur in every chapter their look: predictions, derivations, exercises, quizzes, glossary terms.

Chapters are plain notebooks that read well anywhere. What they mark by wording alone is found here when the book is
built: ``**Predict:**``, ``> **Derivation``, the sections Exercises, Quiz and Recap, and the first cell.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx.application import Sphinx

GLOSSARY = "book/glossary"
PAGES = ("intro", "map", "using", "guide_corrected", "troubleshooting", "limits", "trl", "instructors")
LINKED = ("notebooks/", *(f"book/{page}" for page in PAGES))  # where terms of the glossary become links
SECTIONS = {"Exercises": "exercises", "Quiz": "quiz", "Recap": "recap"}
NUMBERED = re.compile(r"\d+\.")
ANCHOR = re.compile(r'href="[^"]*#((?:term|equation)-[^"]+)"')
MENDED = (  # what Sphinx's writers leave that a screen reader stumbles over
    (re.compile(r'<summary aria-label="Toggle hidden content">'), "<summary>"),  # another name than the one shown
    (re.compile(r'<th class="[^"]*"><p></p></th>'), "<td></td>"),  # the corner of a table heads nothing
    (
        re.compile(r' role="doc-biblioentry"'),
        ' role="listitem"',
    ),  # the old role left the standard, and lists want items
    (re.compile(r' role="doc-backlink"'), ""),
)
IMAGE = re.compile(r'<img (?![^>]*width=)([^>]*?src="([^"]+\.png)")')


def dress(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Mark what recurs, so that the style sheet can show it."""
    for text in [text for text in doctree.findall(nodes.Text) if len(text) == 0]:  # MyST leaves some before bold words
        text.parent.remove(text)
    if page.startswith("notebooks/"):
        fold_first_cell(doctree)
    mark_predictions(doctree)
    mark_derivations(doctree)
    for section in list(doctree.findall(nodes.section)):
        if kind := SECTIONS.get(section[0].astext()):
            section["classes"].append(f"course-{kind}")
            if kind in ("exercises", "quiz"):
                group_items(section)
    for image in doctree.findall(nodes.image):
        image["loading"] = "lazy"
    if page.startswith(LINKED):
        link_terms(app, doctree, page)


def fold_first_cell(doctree: nodes.document) -> None:
    """Readers of the book do not run the set-up."""
    cells = (node for node in doctree.findall(nodes.container) if node.get("nb_element") == "cell_code")
    if (cell := next(cells, None)) is not None:
        wrap = HideCodeCellNode(prompt_show="Set-up", prompt_hide="Set-up")
        wrap["classes"].append("above-input")
        wrap.extend(cell.children)
        cell.children = []
        cell += wrap


def mark_predictions(doctree: nodes.document) -> None:
    """A paragraph that asks to predict becomes a box; one that comes to it half-way is divided there."""
    for paragraph in list(doctree.findall(nodes.paragraph)):
        for i, child in enumerate(paragraph.children):
            if not isinstance(child, nodes.strong):
                continue
            text = child.astext()
            if text == "Predict:" or (text == "Predict" and i == 0):
                asked = nodes.paragraph("", "", *paragraph.children[i:], classes=["course-predict"])
                paragraph.children = paragraph.children[:i]
                paragraph.parent.insert(paragraph.parent.index(paragraph) + 1, asked)
                if not paragraph.children:
                    paragraph.parent.remove(paragraph)
                break
    for box in doctree.findall(nodes.admonition):
        if box[0].astext().startswith("Predict"):
            box["classes"].append("course-predict")


def mark_derivations(doctree: nodes.document) -> None:
    for quote in doctree.findall(nodes.block_quote):
        first = next(iter(quote.findall(nodes.strong)), None)
        if first is not None and first.astext().startswith(("Derivation", "Theorem", "Proof")):
            quote["classes"].append("course-derivation")


def group_items(section: nodes.section) -> None:
    """Everything from one bold number to the next is one exercise or one question; hidden cells in it are solutions."""
    item: nodes.container | None = None
    kept: list[nodes.Node] = []
    for child in section.children:
        strong = child.children[0] if isinstance(child, nodes.paragraph) and child.children else None
        if isinstance(strong, nodes.strong) and NUMBERED.match(strong.astext()):
            item = nodes.container(classes=["course-item"])
            kept.append(item)
        elif isinstance(child, nodes.section):
            item = None
        (kept if item is None else item).append(child)
    section.children = []
    section.extend(kept)
    for hidden in section.findall(HideCodeCellNode):
        hidden["prompt_show"], hidden["prompt_hide"] = "Solution", "Solution"


def link_terms(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Link the first mention of each term of the glossary, unless the page links it itself."""
    assert app.builder is not None
    address = app.builder.get_relative_uri(page, GLOSSARY)
    done = {node.get("refuri", "").partition("#")[2] for node in doctree.findall(nodes.reference)}
    terms = {
        name: label
        for (kind, name), (_, label) in app.env.get_domain("std").objects.items()  # type: ignore[attr-defined]
        if kind == "term" and label not in done
    }
    patterns = {label: term_pattern(name) for name, label in terms.items()}
    for text in list(running_text(doctree)):
        found = [(match, label) for label, pattern in patterns.items() if (match := pattern.search(text))]
        pieces: list[nodes.Node] = []
        end = 0
        for match, label in sorted(found, key=lambda pair: (pair[0].start(), -pair[0].end())):
            if match.start() < end:
                continue  # within a longer term
            link = nodes.reference("", match[0], refuri=f"{address}#{label}", internal=True, classes=["course-term"])
            pieces += [nodes.Text(text[end : match.start()]), link]
            end = match.end()
            del patterns[label]
        if pieces:
            parent = text.parent
            at = parent.index(text)
            parent.children[at : at + 1] = []
            for i, piece in enumerate([*pieces, nodes.Text(text[end:])]):
                parent.insert(at + i, piece)


def term_pattern(name: str) -> re.Pattern[str]:
    """Finds a term in running text, with a plural s; names and abbreviations keep their capitals."""
    words = r"[\s-]".join(map(re.escape, re.split(r"[\s-]", name)))
    return re.compile(rf"(?<![\w-]){words}s?(?![\w-])", 0 if name != name.lower() else re.IGNORECASE)


def running_text(doctree: nodes.document) -> Iterator[nodes.Text]:
    """Text in paragraphs and lists that is neither a link nor code nor emphasised as something else."""
    for paragraph in doctree.findall(nodes.paragraph):
        for text in paragraph.findall(nodes.Text):
            around: nodes.Node = text.parent
            while around is not paragraph and isinstance(around, (nodes.emphasis, nodes.inline)):
                around = around.parent
            if around is paragraph:
                yield text


def previews(app: Sphinx, page: str, body: str) -> str:
    """Templates with what the page's links to terms and equations lead to, for the boxes beside them."""
    wanted = dict.fromkeys(ANCHOR.findall(body))
    known = definitions(app)
    return "".join(f'<template data-anchor="{name}">{known[name]}</template>' for name in wanted if name in known)


def definitions(app: Sphinx) -> dict[str, str]:
    """HTML of every definition of the glossary and of every numbered equation, by anchor; rendered once."""
    if not hasattr(app.env, "course_definitions"):
        render, found = app.builder.render_partial, {}  # type: ignore[union-attr]
        for item in unlinked(app, GLOSSARY).findall(nodes.definition_list_item):
            for term in item.findall(nodes.term):
                for name in term["ids"]:
                    inner = "".join(render(child)["fragment"] for child in item.children[-1].children)
                    found[name] = f"<strong>{render(nodes.inline('', term.astext()))['fragment']}</strong>{inner}"
        for label, (where, _) in app.env.get_domain("math").equations.items():  # type: ignore[attr-defined]
            for block in app.env.get_doctree(where).findall(nodes.math_block):
                if block.get("label") == label:
                    found[f"equation-{label}"] = tex(block.astext())
        app.env.course_definitions = found  # type: ignore[attr-defined]
    return app.env.course_definitions  # type: ignore[attr-defined]


def tex(formula: str) -> str:
    lines = f"\\begin{{split}}{formula}\\end{{split}}" if r"\\" in formula else formula
    return f'<div class="math">\\[{nodes.Text(lines).astext().replace("&", "&amp;").replace("<", "&lt;")}\\]</div>'


def unlinked(app: Sphinx, page: str) -> nodes.document:
    """A page with its links replaced by their text, so that it can stand on any other page."""
    tree = app.env.get_and_resolve_doctree(page, app.builder)  # type: ignore[arg-type]
    for link in list(tree.findall(nodes.reference)):
        link.replace_self(nodes.inline("", "", *link.children))
    return tree


def finish_page(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Mend what is not accessible, append the previews and give images their size, so that nothing jumps on loading."""
    if doctree is None:
        return
    body = mended(context["body"])
    if page != GLOSSARY:
        body += previews(app, page, body)
    context["body"] = IMAGE.sub(lambda found: sized(app, found), body)


def mended(body: str) -> str:
    """The page with names and roles that fit what is shown."""
    for wrong, right in MENDED:
        body = wrong.sub(right, body)
    return body


def sized(app: Sphinx, found: re.Match[str]) -> str:
    """The beginning of an image's tag, with the size that its file says."""
    assert app.builder is not None
    name = Path(found[2]).name
    source = next((path for path, copy in app.builder.images.items() if copy == name), None)
    if source is None:
        return found[0]
    width, height = struct.unpack(">II", (Path(app.srcdir) / source).read_bytes()[16:24])  # where a PNG says so
    return f'<img width="{width}" height="{height}" {found[1]}'


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-resolved", dress, priority=600)
    app.connect("html-page-context", finish_page, priority=600)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
