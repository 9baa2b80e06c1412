"""The mutation tool: its mistakes find their places however the code is worded, and what it plants is really run."""

import ast
import doctest
import sys
from types import ModuleType

import pytest

import tools.mutation.mistake as mistakes
from tools.mutation import operators, syntax
from tools.mutation.chapters import CHAPTERS
from tools.mutation.mistake import ROOT, in_chapter, mistake, mutant, read_module
from tools.mutation.operators import mutants
from tools.mutation.planted import PLANTED
from tools.mutation.run import chapter_failure, first_failure
from tools.mutation.syntax import NotFound, drop, drop_context, drop_keyword, never, plant, swap, uncall

BY_NAME = {each.name: each for each in PLANTED}
IN_CELLS = [each for mistakes in CHAPTERS.values() for each in mistakes if in_chapter(each.modules[0])]


@pytest.mark.parametrize("planted", [*PLANTED, *IN_CELLS], ids=str)
def test_a_planted_mistake_finds_its_place(planted):
    for module in planted.modules:
        compile(planted.planted(module, read_module), module, "exec")
    assert all((ROOT / "tests" / f"test_{name}.py").is_file() for name in planted.tests)
    assert planted.tests or in_chapter(planted.modules[0])


@pytest.mark.parametrize("module", [syntax, operators, mistakes], ids=lambda module: module.__name__)
def test_the_tools_own_examples(module):
    assert doctest.testmod(module).failed == 0 < doctest.testmod(module).attempted


class Reworded(ast.NodeTransformer):
    """Takes docstrings out and gives local variables other names, as whoever rewords a function may."""

    def visit_FunctionDef(self, node):
        inner = [part for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]
        arguments = {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)}
        others = {name.id: f"renamed_{name.id}" for name in inner if name.id not in arguments}
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                part.id = others.get(part.id, part.id)
            if isinstance(part, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(part):
                part.body = part.body[1:] or [ast.Pass()]
        return node


@pytest.mark.parametrize("planted", PLANTED, ids=str)
def test_a_planted_mistake_survives_other_words(planted):
    def reworded(module):
        return ast.parse(ast.unparse(Reworded().visit(read_module(module))))

    for module in planted.modules:
        compile(planted.planted(module, reworded), module, "exec")


def test_a_mistake_without_a_place_says_which_and_where():
    lost = mistake("beta is lost", "losses", "dpo_core.losses:dpo_loss", drop("gamma = _a"))
    with pytest.raises(NotFound, match=r'"beta is lost" finds no place in dpo_core.losses:dpo_loss: no gamma = _a'):
        lost.planted("dpo_core.losses", read_module)
    moved = mistake("gone", "losses", "dpo_core.losses:no_such_loss", uncall("detach"))
    with pytest.raises(NotFound, match="there is no no_such_loss; there are PairLoss, dpo_loss"):
        moved.planted("dpo_core.losses", read_module)


def test_a_change_that_needs_a_name_which_is_not_there_is_refused():
    with pytest.raises(NotFound, match="there is no gamma"):
        plant(ast.parse("def f(x):\n    return x + 1"), "f", [swap("_a + _b", "_a + gamma")])


SOURCE = """
def f(x, mask, model):  # a comment
    with torch.no_grad(), other():
        y = model(x)[:, :-1].detach()
    if not mask.any():
        raise ValueError("no mask")
    total = sum(y, start=0) - sum(x, start=0)
    return F.logsigmoid(total)
"""


@pytest.mark.parametrize(
    ("edit", "gone", "there"),
    [
        (swap("_a[:, :-1]", "_a[:, 1:]"), "[:, :-1]", "model(x)[:, 1:].detach()"),
        (swap("_a - _a", "_a"), "", "no _a - _a"),
        (swap("sum(_a, start=_b)", "max(_a)", nth=2), "", "sum(y, start=0) - max(x)"),
        (swap("_t = _a - _b", "_t = _b - _a\n_t = -_t"), "", "total = -total"),
        (uncall("detach"), "detach", "model(x)[:, :-1]"),
        (uncall("logsigmoid"), "logsigmoid", "return total"),
        (drop_keyword("start", nth=1), "", "sum(y) - sum(x, start=0)"),
        (drop_context("torch.no_grad()"), "no_grad", "nullcontext(), other()"),
        (never("mask.any()"), "mask.any()", "if False:"),
        (drop("raise ValueError(_m)"), "raise", "pass"),
        (drop("y = _a"), "model(", "pass"),
    ],
)
def test_edits(edit, gone, there):
    try:
        text = ast.unparse(plant(ast.parse(SOURCE), "f", [edit]))
    except NotFound as error:
        text = str(error)
    assert there in text
    assert not gone or gone not in text


def test_mutants_are_named_by_their_place_in_the_syntax():
    reworded = SOURCE.replace("  # a comment", "").replace("\n    total", "\n\n    total")
    assert [*mutants(ast.parse(SOURCE))] == [*mutants(ast.parse(reworded))]
    operators = {operator for _, operator, _ in mutants(ast.parse(SOURCE))}
    assert operators >= {
        "arithmetic", "sign", "condition", "slice bound", "keyword dropped", "call undone", "statement dropped",
        "no_grad dropped",
    }  # fmt: skip


@pytest.mark.parametrize("module", ["dpo_core.data", "dpo_core.metrics"])
def test_each_mutant_of_a_module_is_another_program(module):
    tree = read_module(module)
    texts = [ast.dump(mutant(module, (), *place).planted(module, lambda _: tree)) for place in mutants(tree)]
    assert len(texts) > 50
    assert len({*texts, ast.dump(tree)}) == len(texts) + 1


# A fixed set in this process: what the examples in the docstrings alone notice


def failed_examples(module, tree, monkeypatch):
    """The examples of a module that fail, run on other code than the file's."""
    fresh = ModuleType(module)
    monkeypatch.setitem(sys.modules, module, fresh)
    exec(compile(tree, module, "exec"), vars(fresh))
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(fresh):
        runner.run(test, out=lambda text: None)
    return runner.failures


BY_EXAMPLES = [
    "the loss's sign is flipped",
    "the margin's sign is flipped",
    "beta divides instead of multiplying",
    "beta is applied twice",
    "the reference is left out",
    "the rejected answer is left out",
    "label smoothing's sign is flipped",
    "the robust loss is the conservative one",
    "IPO takes sums for averages",
    "SimPO's margin is multiplied by beta",
    "metrics are means of means",
    "chosen_delta is measured from 0",
    "the rejected answer's positions run on",
    "the chosen answer's end predicts the rejected one's start",
    "answers have no end of text",
]


@pytest.mark.parametrize("name", BY_EXAMPLES)
def test_the_examples_in_the_docstrings_notice(name, monkeypatch):
    (module,) = BY_NAME[name].modules
    assert failed_examples(module, read_module(module), monkeypatch) == 0
    assert failed_examples(module, BY_NAME[name].planted(module, read_module), monkeypatch) > 0


# In processes of their own, as the tool runs them


def test_a_planted_mistake_is_run_and_noticed_by_a_test():
    shift = BY_NAME["the shift is dropped"]
    test = "tests/test_logprobs.py::test_sequence_logps_shift_and_mask"
    assert first_failure(shift, [test]) == test
    assert first_failure(None, [test]) == ""


def test_a_chapter_notices_a_mistake_in_the_library_and_one_in_a_cell():
    chapter = "notebooks/05_the_loss_in_code"
    noticed = chapter_failure(BY_NAME["the shift is dropped"], chapter)
    assert noticed.startswith('loss-011: stdout, line 1: "sequence_logps: right in all 4 cases" is stored')
    wrong_shift = next(each for each in CHAPTERS[chapter] if each.name == "the wrong shift in the cell")
    assert chapter_failure(wrong_shift, chapter).startswith("loss-007: stdout, line 1")
