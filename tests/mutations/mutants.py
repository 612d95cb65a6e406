"""Mutations of a module, one at a time: an effect dropped, an assignment skipped, a condition negated or off by one."""

from __future__ import annotations

import ast
import copy
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

SKIPPED = {"check", "snapshot", "_require", "_fail", "__repr__", "label"}
"""Functions that decide nothing: they check, or speak to people."""
SPEAKING = ("logger.",)
"""Calls for people who read a log: no decision hangs on them."""
NEIGHBOURS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}


@dataclass(frozen=True)
class Mutant:
    """One spoilt function."""

    module: str
    function: str
    """Its qualified name in the module."""
    line: int
    kind: str
    source: str
    """The line that is spoilt."""
    path: str
    place: int
    """Which of the places in the function."""

    def __str__(self) -> str:
        return f"{self.module}:{self.line} {self.function}: {self.kind}: {self.source}"

    def apply(self) -> None:
        """Spoil the function in this process."""
        found: Any = importlib.import_module(self.module)
        for name in self.function.split("."):
            found = vars(found)[name]
        if isinstance(found, property):
            found = found.fget
        elif isinstance(found, classmethod | staticmethod):
            found = found.__func__
        assert isinstance(found, FunctionType)
        found.__code__ = self._spoilt()

    def _spoilt(self) -> CodeType:
        tree = ast.parse(Path(self.path).read_text())
        _Spoil(self.place).visit_body(dict(_functions(tree, ""))[self.function])
        return _code(compile(ast.fix_missing_locations(tree), self.path, "exec"), self.function)


def mutants_of(module: str) -> Iterator[Mutant]:
    """Every mutation of a module that is imported, in the order of its lines."""
    imported: ModuleType = importlib.import_module(module)
    assert imported.__file__ is not None
    text = Path(imported.__file__).read_text()
    tree, lines = ast.parse(text), text.splitlines()
    for qualified, function in _functions(tree, ""):
        for place, (line, kind) in enumerate(_places(function)):
            yield Mutant(module, qualified, line, kind, lines[line - 1].strip(), imported.__file__, place)


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef) and child.name not in SKIPPED:
            yield prefix + child.name, child


def _code(code: CodeType, qualified: str) -> CodeType:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_qualname == qualified:
                return constant
            if qualified.startswith(f"{constant.co_qualname}."):
                return _code(constant, qualified)
    raise LookupError(qualified)


class _Spoil(ast.NodeTransformer):
    """Visits the places of a function in a fixed order, and spoils the one with the given number (None: none)."""

    def __init__(self, number: int | None) -> None:
        self.number = number
        self.places: list[tuple[int, str]] = []
        self._extremes: set[ast.Compare] = set()
        """Comparisons that choose the lesser or the greater of two: where these are equal it is the same."""

    def visit_body(self, function: ast.FunctionDef) -> None:
        function.body = [self.visit(statement) for statement in function.body]

    def _is_chosen(self, node: ast.stmt | ast.expr, kind: str) -> bool:
        self.places.append((node.lineno, kind))
        return len(self.places) - 1 == self.number

    def _negated(self, test: ast.expr) -> ast.expr:
        if self._is_chosen(test, "condition negated"):
            return ast.copy_location(ast.UnaryOp(ast.Not(), test), test)
        return test

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Call) and ast.unparse(node.value).startswith(SPEAKING):
            return node
        if isinstance(node.value, ast.Call) and self._is_chosen(node, "effect dropped"):
            return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        return self._assigned(node, node.targets)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        if self._is_chosen(node, "not added"):
            return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> ast.AST:
        if self._is_chosen(node, "not deleted"):
            return ast.copy_location(ast.Pass(), node)
        return node

    def _assigned(self, node: ast.stmt, targets: list[ast.expr]) -> ast.AST:
        # without a local name its function would only fail
        lasting = all(isinstance(target, ast.Attribute | ast.Subscript) for target in targets)
        if lasting and self._is_chosen(node, "assignment skipped"):
            return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        if len(node.body) == 1 and isinstance(node.body[0], ast.Assign) and not node.orelse:
            self._note_extremes(node.test, node.body[0].targets[0], node.body[0].value)
        node.test = self._negated(node.test)
        return self.generic_visit(node)

    def visit_While(self, node: ast.While) -> ast.AST:
        node.test = self._negated(node.test)
        return self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self._note_extremes(node.test, node.body, node.orelse)
        node.test = self._negated(node.test)
        return self.generic_visit(node)

    def _note_extremes(self, test: ast.expr, one: ast.expr, other: ast.expr) -> None:
        chosen = {ast.unparse(one), ast.unparse(other)}
        for part in test.values if isinstance(test, ast.BoolOp) else [test]:
            if isinstance(part, ast.Compare) and {ast.unparse(part.left), ast.unparse(part.comparators[-1])} == chosen:
                self._extremes.add(part)

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        node.ifs = [self._negated(test) for test in node.ifs]
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        for index in range(len(node.values)):
            if self._is_chosen(node.values[index], f"without `{ast.unparse(node.values[index])}`"):
                del node.values[index]
                return node.values[0] if len(node.values) == 1 else node
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        for index, operator in enumerate(node.ops):
            neighbour = NEIGHBOURS.get(type(operator))
            if neighbour is not None and node not in self._extremes and self._is_chosen(node, "off by one"):
                node.ops[index] = neighbour()
                return node
        return self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return node  # for the type checker

    def visit_match_case(self, node: ast.match_case) -> ast.AST:
        if isinstance(node.body[0], ast.Expr) and ast.unparse(node.body[0]).startswith("assert_never"):
            return node
        if self._is_chosen(node.body[0], "branch dropped"):
            node.body = [ast.copy_location(ast.Pass(), node.body[0])]
            return node
        return self.generic_visit(node)


def _places(function: ast.FunctionDef) -> list[tuple[int, str]]:
    finder = _Spoil(None)
    finder.visit_body(copy.deepcopy(function))
    return finder.places
