"""Changes of syntax: where they are made, and the ones made by hand."""

from __future__ import annotations

import ast
import builtins
import copy
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = [
    "Edit", "NULL_CONTEXT", "NotFound", "drop", "drop_context", "drop_keyword", "never", "plant", "scopes", "swap",
    "undone", "uncall", "within",
]  # fmt: skip

Edit = Callable[[ast.AST], ast.AST]  # a function's definition, or a module, changed in place or replaced
WILD = re.compile(r"_\w?")  # in a pattern: any expression, and the same one wherever the letter is the same
WHERE = {"ctx", "type_comment", "kind"}  # of a node: says nothing about what it computes


class NotFound(ValueError):
    """A mistake no longer finds its place."""


def scopes(tree: ast.Module) -> dict[str, ast.AST]:
    """Find all classes and functions of a module by their qualified names; the module itself has none.

    >>> list(scopes(ast.parse("class A:\\n    def f(self):\\n        def g(): pass")))
    ['', 'A', 'A.f', 'A.f.g']
    """
    found: dict[str, ast.AST] = {}

    def visit(node: ast.AST, name: str) -> None:
        found[name] = node
        for child in within(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                visit(child, f"{name}.{child.name}".lstrip("."))

    visit(tree, "")
    return found


def within(scope: ast.AST) -> Iterator[ast.AST]:
    """What stands in a scope in the order of the source, without the functions and classes in it, which are yielded."""
    for name, value in ast.iter_fields(scope):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                continue
            yield child
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from within(child)


def plant(tree: ast.Module, scope: str, edits: Sequence[Edit], closed: bool = True) -> ast.Module:
    """Make changes in one function, in a copy of its module.

    Args:
        tree: the module.
        scope: the function's qualified name; empty for the module.
        edits: what to change, one after another.
        closed: whether all names that it may use are in the module; in a notebook other cells have them, too.
    Raises:
        NotFound: there is no such function, nothing to change in it, or a name that the change needs is not there.

    >>> tree = ast.parse("def f(x):\\n    return x + 1  # a comment")
    >>> print(ast.unparse(plant(tree, "f", [swap("_a + _b", "_a - _b")])))
    def f(x):
        return x - 1
    """
    tree = copy.deepcopy(tree)
    known = scopes(tree)
    if scope not in known:
        raise NotFound(f"there is no {scope}; there are {', '.join(filter(None, known))}")
    before, names = ast.dump(tree), _names(known[scope])
    bound = names | _bound(tree) | set(dir(builtins))
    for edit in edits:
        edit(known[scope])
    if ast.dump(tree) == before:
        raise NotFound("nothing was changed")
    if closed and (unknown := sorted(_names(known[scope]) - bound)):
        raise NotFound(f"there is no {unknown[0]}")
    return ast.fix_missing_locations(tree)


def _names(node: ast.AST) -> set[str]:
    """All names of variables, arguments and imports in a function."""
    kinds = {ast.Name: "id", ast.arg: "arg", ast.alias: "name", ast.FunctionDef: "name", ast.ClassDef: "name"}
    return {getattr(part, kinds[type(part)]) for part in ast.walk(node) if type(part) in kinds}


def _bound(tree: ast.Module) -> set[str]:
    """The names that the module itself has."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        else:
            found |= _names(node)
    return found


# By hand


def swap(old: str, new: str, nth: int | None = None) -> Edit:
    """Exchange what looks like ``old`` for ``new``, both in Python, where ``_a``, ``_b``, ... stand for any expression.

    Args:
        old: an expression, or a statement.
        new: the same; of a statement also several, or none.
        nth: of the places in the function, from 1; all of them if not given.

    >>> tree = ast.parse("y = model(ids)[:, :-1].float()")
    >>> print(ast.unparse(swap("_a[:, :-1]", "_a[:, 1:]")(tree)))
    y = model(ids)[:, 1:].float()
    """
    pattern, template = ast.parse(old).body, ast.parse(new).body
    if len(pattern) != 1:
        raise ValueError(f"a pattern is one expression or statement, not {old!r}")
    wanted: ast.AST = pattern[0]
    given: list[ast.stmt] | ast.expr = template
    if isinstance(wanted, ast.Expr) and template and isinstance(template[0], ast.Expr):
        wanted, given = wanted.value, template[0].value

    def change(node: ast.AST) -> ast.AST | list[ast.stmt] | None:
        bound: dict[str, ast.AST] = {}
        if not _matches(wanted, node, bound):
            return None
        if isinstance(given, ast.expr):
            return _filled(given, bound, node)
        return [_filled(statement, bound, node) for statement in given or [ast.Pass()]]

    return _each(change, old, nth)


def drop(statement: str, nth: int | None = None) -> Edit:
    """Leave a statement out, such as ``self.optimizer.zero_grad()``, or ``_a = _b.float()``."""
    return swap(statement, "", nth)


def uncall(name: str, nth: int | None = None) -> Edit:
    """Leave a call out: ``x.detach()`` and ``F.relu(x)`` become ``x``."""
    return _each(lambda node: undone(node, {name}), f"{name}()", nth)


def undone(node: ast.AST, names: set[str]) -> ast.AST | None:
    """The first argument of a call of one of these functions, or what a method without arguments is called on."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func).split(".")[-1] not in names:
        return None
    return node.args[0] if node.args else getattr(node.func, "value", None)


def drop_keyword(name: str, nth: int | None = None) -> Edit:
    """Leave a named argument of a call out."""

    def change(node: ast.AST) -> ast.AST | None:
        if not isinstance(node, ast.Call) or name not in [keyword.arg for keyword in node.keywords]:
            return None
        node.keywords = [keyword for keyword in node.keywords if keyword.arg != name]
        return node

    return _each(change, f"{name}=", nth)


def drop_context(expression: str) -> Edit:
    """Leave a ``with``'s context out, or a decorator, such as ``torch.no_grad()``."""
    wanted = ast.parse(expression, mode="eval").body

    def edit(scope: ast.AST) -> ast.AST:
        found = 0
        for node in ast.walk(scope):
            decorators = getattr(node, "decorator_list", [])
            kept = [each for each in decorators if not _matches(wanted, each, {})]
            found += len(decorators) - len(kept)
            decorators[:] = kept
            if isinstance(node, (ast.With, ast.AsyncWith)):
                for item in node.items:
                    if _matches(wanted, item.context_expr, {}):
                        found += 1
                        item.context_expr = _filled(NULL_CONTEXT, {}, item.context_expr)
        if not found:
            raise NotFound(f"no context {expression}")
        return scope

    return edit


NULL_CONTEXT = ast.parse("__import__('contextlib').nullcontext()", mode="eval").body


def never(condition: str, nth: int | None = None) -> Edit:
    """Let an ``if`` whose test looks like this, or holds such a part, never be true."""
    wanted = ast.parse(condition, mode="eval").body

    def change(node: ast.AST) -> ast.AST | None:
        if not isinstance(node, (ast.If, ast.IfExp)):
            return None
        if not any(_matches(wanted, part, {}) for part in ast.walk(node.test)):
            return None
        node.test = ast.copy_location(ast.Constant(False), node.test)
        return node

    return _each(change, f"if {condition}", nth)


def _each(change: Callable[[ast.AST], ast.AST | list[ast.stmt] | None], what: str, nth: int | None) -> Edit:
    """An edit that changes every node, or the nth, for which ``change`` has something else."""

    class Editor(ast.NodeTransformer):
        def __init__(self) -> None:
            self.count = 0

        def visit(self, node: ast.AST) -> object:
            changed = change(node if nth is None or self.count + 1 == nth else copy.deepcopy(node))
            if changed is None:
                return super().visit(node)
            self.count += 1
            return changed if nth in (None, self.count) else super().visit(node)

    def edit(scope: ast.AST) -> ast.AST:
        editor = Editor()
        editor.generic_visit(scope)
        if editor.count < (nth or 1):
            raise NotFound(f"{what} is there {editor.count} times, not {nth}" if editor.count else f"no {what}")
        return scope

    return edit


def _matches(pattern: object, node: object, bound: dict[str, ast.AST]) -> bool:
    """Whether a node looks like a pattern; ``bound`` is given what its wild names stand for."""
    if isinstance(pattern, ast.Name) and WILD.fullmatch(pattern.id):
        if not isinstance(node, ast.expr):
            return False
        if pattern.id == "_":
            return True
        known = bound.setdefault(pattern.id, node)
        return known is node or _matches(known, node, {})
    if isinstance(pattern, ast.AST):
        return type(pattern) is type(node) and all(
            _matches(getattr(pattern, name, None), getattr(node, name, None), bound)
            for name in pattern._fields
            if name not in WHERE
        )
    if isinstance(pattern, list):
        return (
            isinstance(node, list)
            and len(pattern) == len(node)
            and all(_matches(one, other, bound) for one, other in zip(pattern, node))
        )
    return type(pattern) is type(node) and pattern == node


def _filled(template: ast.AST, bound: dict[str, ast.AST], place: ast.AST) -> Any:
    """A template with its wild names filled in, standing where ``place`` stands."""

    class Filler(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            if not WILD.fullmatch(node.id):
                return ast.copy_location(node, place)
            if node.id not in bound:
                raise ValueError(f"{node.id} stands for nothing")
            value = copy.deepcopy(bound[node.id])
            if isinstance(value, ast.Name):
                value.ctx = node.ctx
            return value

        def generic_visit(self, node: ast.AST) -> ast.AST:
            return super().generic_visit(ast.copy_location(node, place))

    return Filler().visit(copy.deepcopy(template))
