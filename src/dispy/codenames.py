"""What code names: globals of the client's `__main__`, and modules."""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any, Final

MAIN: Final = "__main__"

CACHED: Final = type(functools.lru_cache(lambda: None))


def is_code(value: object) -> bool:
    """Whether a value is a class or a function."""
    return isinstance(value, type | types.FunctionType | CACHED)


def is_defined_as(value: Any, name: str) -> bool:
    """Whether a value was defined in `__main__` under this name."""
    return getattr(value, "__module__", None) == MAIN and getattr(value, "__qualname__", None) == name


@functools.lru_cache(maxsize=4096)
def names_in(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """(globals, modules imported) that a code object and those inside it name."""
    names: set[str] = set()
    modules: set[str] = set()
    imported = ""
    for instruction in dis.get_instructions(code):
        if "GLOBAL" in instruction.opname or instruction.opname == "LOAD_NAME":
            names.add(str(instruction.argval))
        elif instruction.opname == "IMPORT_NAME":
            imported = str(instruction.argval)
            modules.add(imported)
        elif instruction.opname == "IMPORT_FROM":
            modules.add(f"{imported}.{instruction.argval}")  # perhaps a module
        elif isinstance(instruction.argval, types.CodeType):
            inner_names, inner_modules = names_in(instruction.argval)
            names |= inner_names
            modules |= inner_modules
    return frozenset(names), frozenset(modules)


def own_code(value: object) -> Iterator[types.FunctionType]:
    """The functions that a computation or a dependency is made of, as far as one sees without pickling it."""
    if isinstance(value, functools.partial):
        yield from own_code(value.func)
    elif isinstance(value, types.MethodType):
        yield from own_code(value.__func__)
        yield from own_code(type(value.__self__))
    elif isinstance(value, CACHED):
        yield from own_code(value.__wrapped__)
    elif isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, type):
        for part in vars(value).values():
            function = getattr(part, "__func__", part)
            if isinstance(function, types.FunctionType):
                yield function


def names_of(values: list[object]) -> list[str]:
    """Globals of `__main__` that values name, directly or through functions and classes there."""
    main = vars(sys.modules[MAIN])
    found: dict[str, None] = {}
    waiting = list(values)
    while waiting:
        for function in own_code(waiting.pop()):
            if function.__globals__ is not main:
                continue
            for name in sorted(names_in(function.__code__)[0]):
                if name in main and name not in found:
                    found[name] = None
                    waiting.append(main[name])
    return list(found)
