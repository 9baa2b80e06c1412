"""What the Sphinx extension makes of plain notebooks, without a build: times, predictions, exercises, terms."""

from types import SimpleNamespace

import book_hooks
import chapters
import course_map
import dressing
import measured
import nbformat
import pytest
from docutils import nodes
from docutils.core import publish_doctree

from dpo_core.course.widgets.run_explorer import RunExplorer
from dpo_core.errors import InputError
from dpo_core.pocket.world import questions


def document(text):
    return publish_doctree(text, settings_overrides={"doctitle_xform": False, "report_level": 5})


def texts(doctree, name):
    return [
        node.astext()
        for node in doctree.findall(lambda node: name in getattr(node, "attributes", {}).get("classes", []))
    ]


@pytest.mark.parametrize(
    "said, found",
    [
        ("**Time:** about 40 minutes; all cells run in one.", "40 minutes"),
        ("**Time:** about an hour; all cells run in a minute.", "an hour"),
        ("It takes about ten minutes and builds on nothing.", "ten minutes"),
        ("All cells together run in under a minute.", ""),
    ],
)
def test_a_chapter_says_its_time(said, found):
    assert chapters.minutes(document(f"Title\n=====\n\n{said}\n")) == found


def test_every_chapter_has_a_level_and_a_place():
    listed = chapters.chapters(measured.ROOT)
    assert {chapter.number for chapter in listed} <= set(chapters.LEVELS)
    assert [chapter.number for chapter in listed] == sorted(chapter.number for chapter in listed)
    on_disk = {f"notebooks/{path.stem}" for path in (measured.ROOT / "notebooks").glob("*.ipynb")}
    assert {chapter.page for chapter in listed} <= on_disk


@pytest.mark.parametrize("launch, expected", [({"colab_url": "https://colab.research.google.com"}, True), ({}, False)])
def test_colab_is_offered_where_it_can_install_the_library(launch, expected):
    options = {"repository_url": "https://github.com/someone/course", "repository_branch": "main"}
    config = SimpleNamespace(html_theme_options=options | {"launch_buttons": launch})
    app = SimpleNamespace(srcdir=str(measured.ROOT), config=config)
    context = {"pathto": lambda name, resource: f"../{name}"}
    page = chapters.chapters(measured.ROOT)[0].page
    html = chapters.head(app, page, context, document("Title\n=====\n\nIt takes about ten minutes.\n"))
    link = f"https://colab.research.google.com/github/someone/course/blob/main/{page}.ipynb"
    assert (link in html) is expected
    assert f'href="../_sources/{page}.ipynb" download' in html


def test_every_chapter_stands_on_the_map():
    listed = {chapter.number for chapter in chapters.chapters(measured.ROOT)}
    drawn = {number for box in course_map.BOXES for number in box.chapters} | {"00", "03"}
    assert drawn == listed
    picture = course_map.svg(course_map.ON_PAGE)
    assert all(number in course_map.ALT and f">{number}</text>" in picture for number in listed)


def test_the_file_of_the_map_is_what_its_script_draws():
    """``python book/_ext/course_map.py`` writes it."""
    assert course_map.FILE.read_text(encoding="utf-8") == course_map.svg(course_map.IN_FILE, "#fafaf7") + "\n"


def test_times_follow_the_rule():
    (row,) = chapters.counted(["05"])
    assert row.chapter.startswith("05_") and 0 < chapters.reading(row) < row.minutes
    assert (chapters.spoken(23), chapters.spoken(164), chapters.spoken(480)) == ("25 minutes", "2 h 45 min", "8 h")


def test_what_a_reader_does_not_see_is_not_counted(tmp_path):
    """Two words, one verdict, one long cell and one exercise; what is hidden, and code in a text, do not count."""
    said = [nbformat.v4.new_output("stream", text="right: True\n")]
    hidden = {"tags": ["hide-cell"]}
    cells = [
        nbformat.v4.new_markdown_cell("# `code` Two words\n\n$x$ [](https://example.org/a)"),
        nbformat.v4.new_markdown_cell("**1. Mean.**"),
        nbformat.v4.new_markdown_cell("**1.**"),  # a question of a quiz
        nbformat.v4.new_code_cell("x\n" * 31, outputs=said),
        nbformat.v4.new_code_cell("x\n" * 31, outputs=said, metadata=hidden),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "11_some.ipynb")
    row = chapters.count(tmp_path / "11_some.ipynb")
    assert (row.words, row.verdicts, row.cells, row.long, row.exercises, row.said) == (3, 1, 1, 1, 1, 0)


@pytest.mark.parametrize("path", sorted(chapters.NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_chapters_head_says_the_time_of_the_rule(path):
    """Within a fifth; ``python -m tools.book_counts`` prints both."""
    row = chapters.count(path)
    assert abs(row.said - row.minutes) <= 0.2 * row.minutes


@pytest.mark.parametrize(
    "address, target",
    [
        ("https://github.com/a/b", "https://github.com/a/b/issues/new?title=Mistake%20on%20the%20page%20book/map"),
        ("", "using.html#found-a-mistake"),
    ],
)
def test_every_page_has_a_link_for_reports(address, target):
    app = SimpleNamespace(config=SimpleNamespace(html_theme_options={"repository_url": address}))
    context = {"pathto": lambda page: "using.html"}
    book_hooks.offer_report(app, "book/map", "page.html", context, None)
    assert f'href="{target}"' in context["theme_extra_footer"]
    assert "\n## Found a mistake?\n" in (measured.ROOT / "book" / "using.md").read_text(encoding="utf-8")


def test_predictions_become_boxes():
    tree = document(
        "**Predict:** one or two?\n\nFirst this. **Predict:** and then?\n\n**Predict**, for all: which?\n\n"
        "Where you see **Predict**, think.\n"
    )
    dressing.mark_predictions(tree)
    assert texts(tree, "course-predict") == ["Predict: one or two?", "Predict: and then?", "Predict, for all: which?"]
    assert "First this. " in [node.astext() for node in tree.findall(nodes.paragraph)]


def test_exercises_are_grouped_with_what_belongs_to_them():
    tree = document(
        "Quiz\n----\n\nDecide.\n\n**1.** Why?\n\nBecause.\n\n**2.** How?\n\nSo.\n\nMore\n~~~~\n\n**3.** Not in it.\n"
    )
    section = next(iter(tree.findall(nodes.section)))
    dressing.group_items(section)
    assert texts(tree, "course-item") == ["1. Why?\n\nBecause.", "2. How?\n\nSo."]


def test_terms_are_found_in_running_text_only():
    pattern = dressing.term_pattern("held out")
    assert pattern.search("two held-out topics") and pattern.search("Held out") and not pattern.search("upheld out")
    assert dressing.term_pattern("token").search("three tokens") and not dressing.term_pattern("token").search(
        "tokenizer"
    )
    assert not dressing.term_pattern("EOS").search("eos")
    tree = document("A token, ``token``, `token <x>`__ and *token*.\n")
    assert [text for text in map(str, dressing.running_text(tree)) if "token" in text] == ["A token, ", "token"]


def test_a_quick_start_without_its_table_is_refused(tmp_path):
    (tmp_path / "bare.ipynb").write_text('{"cells": []}')
    with pytest.raises(measured.ExtensionError, match=r"bare\.ipynb holds no table"):
        measured.stored_answers(tmp_path / "bare.ipynb")


def test_names_and_roles_are_mended():
    body = (
        '<summary aria-label="Toggle hidden content">\n<p>Solution</p></summary>'
        '<table><tr><th class="head"><p></p></th><th class="head"><p>what</p></th></tr></table>'
        '<div role="list"><div class="citation" id="a" role="doc-biblioentry">'
        '<a role="doc-backlink" href="#b">1</a></div></div>'
    )
    assert dressing.mended(body) == (
        "<summary>\n<p>Solution</p></summary>"
        '<table><tr><td></td><th class="head"><p>what</p></th></tr></table>'
        '<div role="list"><div class="citation" id="a" role="listitem"><a href="#b">1</a></div></div>'
    )


def test_the_run_on_the_landing_page_is_the_one_that_the_text_describes():
    run = RunExplorer.stored()
    assert (run.record["steps"], run.record["rows"][-1]["step"]) == (50, 50)
    assert "fifty steps" in (measured.ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    first, last = run.values(), RunExplorer(run.record, 50).values()
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4) and first["margin"] == first["kl"] == 0
    assert last["margin"] > 0 and last["kl"] > 0
    questions_held_out = {question.text for question in questions(held_out=True)}
    assert set(run.record["prompts"]) <= questions_held_out


def test_a_record_that_lacks_its_beginning_is_refused():
    rows, answers = [{"step": 10, "loss": 0.6}], [{"text": "Because.", "reward": 0.1}]
    with pytest.raises(InputError, match="step 0"):
        RunExplorer({"rows": rows, "stations": [{"step": 0, "answers": answers}], "prompts": ["Why?"]})
    with pytest.raises(InputError, match="one answer a prompt"):
        start = [{"step": 0, "loss": 0.7}]
        RunExplorer({"rows": start, "stations": [{"step": 0, "answers": []}], "prompts": ["Why?"]})
