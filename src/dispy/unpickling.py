"""The arguments of a job, read again in the program that has pickled them: its own classes stay as they are.

A worker unpickles the same bytes by `dispy.namespace`, where code by value becomes new names.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, Final

from dispy import buffers, namespace
from dispy.scattered import named_by

CLOUDPICKLE: Final = "cloudpickle.cloudpickle"


def loads_arguments(data: bytes | memoryview) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments of a job; what becomes of them changes nothing of `data`.

    Raises:
        Exception: what unpickling raises, for instance when one of them cannot be rebuilt.
    """
    pickled, views = buffers.split(data)
    args, kwargs = _Unpickler(io.BytesIO(pickled), buffers=[bytearray(view) for view in views]).load()
    return tuple(args), kwargs or {}  # of several calls: their columns


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _INSTEAD.get((module, name)) or super().find_class(module, name)


def _make_function(
    code: types.CodeType, names: dict[str, Any], name: str | None, defaults: Any, closure: Any
) -> types.FunctionType:
    at_home = namespace.HOME in names or names.get("__name__") == namespace.MAIN
    return types.FunctionType(code, vars(sys.modules[names["__name__"]]) if at_home else names, name, defaults, closure)


def _leave_class(made: type, _state: object) -> type:
    return made


def _without_code(_code: bytes, _modules: tuple[str, ...], arguments: bytes) -> object:
    return loads_arguments(arguments)


def _first_record(data: bytes) -> object:
    file = io.BytesIO(data)
    pickle.load(file)  # the header is about what the worker has to import
    _, roots = _Unpickler(file).load()
    return roots["value"]


_INSTEAD: Final[Mapping[tuple[str, str], Callable[..., object]]] = {
    (CLOUDPICKLE, "_make_function"): _make_function,
    (CLOUDPICKLE, "_class_setstate"): _leave_class,
    (namespace.__name__, namespace.scattered.__name__): named_by,
    (namespace.__name__, namespace.load_for_job.__name__): _without_code,
    (namespace.__name__, namespace.load_later.__name__): _first_record,
}
"""What is called for the functions that the bytes name."""
