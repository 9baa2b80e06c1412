"""The operators that make mistakes by rule, and the names of all that they can make in a module."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator

from tools.mutation.syntax import NULL_CONTEXT, Edit, NotFound, scopes, undone, within

__all__ = ["OPERATORS", "mutants", "operated"]

COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
COMPUTED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.MatMult: ast.Add, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
UNDONE = {"detach", "float", "double", "clone", "abs", "exp", "log", "sigmoid", "clamp", "contiguous", "sorted"}
UNDONE |= {"logsigmoid", "relu", "sqrt", "strip", "reversed"}


def _comparison(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        node.ops[0] = COMPARED[type(node.ops[0])]()
        return node
    return None


def _arithmetic(node: ast.AST) -> ast.AST | None:
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in COMPUTED:
        node.op = COMPUTED[type(node.op)]()
        return node
    return None


def _sign(node: ast.AST) -> ast.AST | None:
    return node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)) else None


def _negated_argument(node: ast.AST) -> ast.AST | None:
    """``f(x - y)`` becomes ``f(-(x - y))``; what is a number is known of sums and products alone."""
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.BinOp):
        if isinstance(node.args[0].op, (ast.Add, ast.Sub, ast.Mult, ast.Div)):
            node.args[0] = ast.UnaryOp(ast.USub(), node.args[0])
            return node
    return None


def _logic(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return node
    return None


def _condition(node: ast.AST) -> ast.AST | None:
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return node
    return None


def _constant(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        value = node.value
        return ast.Constant(not value if isinstance(value, bool) else value + 1)  # type: ignore[operator]
    return None


def _slice_bound(node: ast.AST) -> ast.AST | None:
    """``x[1:]`` becomes ``x[:]``, ``x[:n]`` too."""
    if isinstance(node, ast.Slice) and (node.lower or node.upper):
        return ast.Slice(None, None if node.lower is None else node.upper, node.step)
    return None


def _keyword(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.Call) and node.keywords and node.keywords[-1].arg:
        del node.keywords[-1]
        return node
    return None


def _statement(node: ast.AST) -> ast.AST | None:
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    return ast.Pass() if called or isinstance(node, (ast.AugAssign, ast.Raise)) else None


def _context(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.With) and any("no_grad" in ast.unparse(item.context_expr) for item in node.items):
        node.items = [ast.withitem(copy.deepcopy(NULL_CONTEXT))]
        return node
    return None


OPERATORS: dict[str, Callable[[ast.AST], ast.AST | None]] = {
    "comparison": _comparison,
    "arithmetic": _arithmetic,
    "sign": _sign,
    "negated argument": _negated_argument,
    "logic": _logic,
    "condition": _condition,
    "constant": _constant,
    "slice bound": _slice_bound,
    "keyword dropped": _keyword,
    "call undone": lambda node: undone(node, UNDONE),
    "statement dropped": _statement,
    "no_grad dropped": _context,
}


def mutants(tree: ast.Module) -> Iterator[tuple[str, str, int]]:
    """Name every mistake that the operators can make in a module: function, operator, and which of its places.

    Annotations and the words of messages are spared.

    >>> list(mutants(ast.parse("def f(x: int = 1):\\n    return x + 1")))
    [('f', 'arithmetic', 1), ('f', 'constant', 1), ('f', 'constant', 2)]
    """
    for scope, node in scopes(tree).items():
        for operator, change in OPERATORS.items():
            places = sum(change(copy.deepcopy(part)) is not None for part in within(node))
            yield from ((scope, operator, nth) for nth in range(1, places + 1))


def operated(operator: str, nth: int) -> Edit:
    """The edit that one of the operators makes in a function, at the nth of its places there.

    >>> from tools.mutation.syntax import plant
    >>> print(ast.unparse(plant(ast.parse("def f(x):\\n    return x + 1"), "f", [operated("arithmetic", 1)])))
    def f(x):
        return x - 1
    """
    change = OPERATORS[operator]

    def edit(scope: ast.AST) -> ast.AST:
        count = 0
        for node in within(scope):
            if change(copy.deepcopy(node)) is None:
                continue
            count += 1
            if count == nth:
                _put(scope, node, ast.copy_location(change(copy.deepcopy(node)) or node, node))
                return scope
        raise NotFound(f"{operator} is there {count} times, not {nth}")

    return edit


def _put(scope: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(scope):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list) and any(each is old for each in value):
                value[:] = [new if each is old else each for each in value]
