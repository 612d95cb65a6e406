"""The one `__main__` of the workers: what comes later adds and never overwrites."""

from __future__ import annotations

import pickle
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest

from dispy import namespace, pickling


@pytest.fixture
def client() -> Iterator[types.ModuleType]:
    """A client's `__main__` to define things in; the real one comes back afterwards."""
    real = sys.modules["__main__"]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    yield module
    sys.modules["__main__"] = real


def define(module: types.ModuleType, source: str) -> dict[str, Any]:
    exec(source, module.__dict__)
    return module.__dict__


def load(data: bytes) -> tuple[namespace.Computation, dict[str, Any]]:
    main = namespace.make_main()
    return namespace.load_computation(data), main.__dict__


def dump(compute: object, setup: object = None, depends: Any = None) -> tuple[bytes, pickling.Context]:
    return pickling.dumps_code({"compute": compute, "setup": setup, "cleanup": None}, depends or {})


def test_setup_and_compute_share_globals(client: types.ModuleType) -> None:
    names = define(client, "x = 1\ndef setup():\n global x, y\n x = 42; y = 7\ndef compute(): return x, y, sys.maxsize")
    computation, main = load(dump(names["compute"], names["setup"])[0])
    assert computation.setup is not None
    computation.setup()
    assert computation.compute() == (42, 7, sys.maxsize)
    assert main["x"] == 42
    assert names["x"] == 1


def test_what_comes_later_overwrites_nothing(client: types.ModuleType) -> None:
    names = define(client, "x = 1\ndef setup():\n global x\n x = 42\ndef compute(f): return f()\n")
    data, context = dump(names["compute"], names["setup"])
    define(client, "def later(): return x, fresh, K.n\nfresh = 3\nclass K: n = 5")
    arguments = pickling.dumps_value(context.shipped, ((names["later"],), {}))
    again = pickling.dumps_value(context.shipped, ((names["later"],), {}))
    computation, main = load(data)
    assert computation.setup is not None
    computation.setup()
    args, _ = pickle.loads(arguments)
    assert computation.compute(*args) == (42, 3, 5)
    main["K"].n = 6
    main["fresh"] = 4
    args, _ = pickle.loads(again)
    assert computation.compute(*args) == (42, 4, 6)


def test_omitted_globals_have_reasons(client: types.ModuleType) -> None:
    names = define(client, "def compute(): return lock")
    names["lock"] = threading.Lock()
    computation, main = load(dump(names["compute"])[0])
    assert "lock" not in main
    assert computation.omitted == {"lock": "cannot pickle '_thread.lock' object"}


def test_a_module_that_is_missing_here_is_an_omitted_global(client: types.ModuleType) -> None:
    names = define(client, "def compute(): return rare")
    names["rare"] = types.ModuleType("no_such_module_anywhere")
    computation, main = load(dump(names["compute"])[0])
    assert "rare" not in main
    assert computation.omitted["rare"].startswith("module no_such_module_anywhere cannot be imported on this node")


def test_shared_objects_stay_shared(client: types.ModuleType) -> None:
    names = define(client, "a = []\nb = {'a': a}\ndef compute(): return b['a'] is a")
    computation, _ = load(dump(names["compute"])[0])
    assert computation.compute() is True


def test_what_nothing_names_is_loaded_when_it_is_asked_for(client: types.ModuleType) -> None:
    helpers = "import json\ndata = [1]\ndef other(): return data\ndef helper(): return json, data, other\n"
    names = define(client, helpers + "def compute(f): return f")
    data, context = dump(names["compute"])
    argument = pickling.dumps_value(context.shipped, names["helper"])
    computation, main = load(data)
    assert not main.keys() & {"json", "data", "other", "helper"}
    found = computation.compute(pickle.loads(argument))
    assert found is main["helper"]
    assert found()[1] is main["data"] is main["other"]()
    assert found()[2] is sys.modules["__main__"].other  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = sys.modules["__main__"].nothing


def test_what_nothing_names_and_cannot_be_loaded_is_no_matter_of_others(client: types.ModuleType) -> None:
    absent = sys.modules["dispy_absent"] = types.ModuleType("dispy_absent")
    define(absent, "class Base: pass")
    try:
        names = define(
            client,
            "import dispy_absent\n"
            "class Conf:\n def __reduce__(self): return open, ('/no/such/file',)\n"
            "conf = Conf()\nclass Arr(dispy_absent.Base): pass\n"
            "def show(): return conf\ndef plot(): return Arr()\ndef compute(x): return x + 1",
        )
        data, context = dump(names["compute"])
        arguments = [pickling.dumps_value(context.shipped, names[name]) for name in ("show", "plot", "Arr")]
    finally:
        del sys.modules["dispy_absent"]
    computation, main = load(data)
    assert (computation.compute(1), computation.omitted) == (2, {})
    for argument, missing, why in (
        (arguments[0], "conf", "loading it on this node failed: FileNotFoundError: "),
        (arguments[1], "Arr", "loading it on this node failed: ModuleNotFoundError: No module named 'dispy_absent'"),
    ):
        with pytest.raises(NameError) as caught:
            pickle.loads(argument)()
        assert caught.value.name == missing
        assert computation.omitted[missing].startswith(why)
    before = set(main)
    sentence = "'Arr' of the program's __main__, which this needs, cannot be loaded on this node: ModuleNotFoundError"
    with pytest.raises(pickle.UnpicklingError, match=sentence):
        pickle.loads(arguments[2])
    assert set(main) == before


def test_code_that_looks_for_globals_finds_what_it_does_not_name(client: types.ModuleType) -> None:
    bad = "class Bad:\n def __reduce__(self): return open, ('/no/such/file',)\n"
    good = "def helper(): return data\ndata = 3\n"
    names = define(
        client, good + bad + "bad = Bad()\ndef broken(a=bad): pass\ndef compute(): return globals()['helper']()"
    )
    computation, _ = load(dump(names["compute"])[0])
    assert computation.compute() == 3
    assert computation.omitted["broken"].startswith("loading it on this node failed: FileNotFoundError")


def test_what_comes_later_may_name_what_nothing_has_named(client: types.ModuleType) -> None:
    names = define(client, "data = 3\ndef helper(): return data\ndef compute(f): return f()")
    data, context = dump(names["compute"])
    define(client, "def later(): return helper() + data")
    argument = pickling.dumps_value(context.shipped, names["later"])
    computation, _ = load(data)
    assert computation.compute(pickle.loads(argument)) == 6


def test_injected_names_are_seen_everywhere() -> None:
    real = sys.modules["__main__"]
    try:
        main = namespace.make_main()
        namespace.inject({"dispy_test_name": 5})
        assert main.__dict__["dispy_test_name"] == 5
        assert eval("dispy_test_name") == 5
    finally:
        sys.modules["__main__"] = real
        import builtins

        del builtins.dispy_test_name  # type: ignore[attr-defined]


def test_a_culprit_is_found_in_depth() -> None:
    class Slotted:
        __slots__ = ("part",)

    value = Slotted()
    value.part = {1: (2, threading.Lock())}
    sentence = namespace.find_culprit([value], "it", pickling.dumps_nowhere)
    assert sentence.startswith("it[0].part[1][1] (a _thread.lock) cannot be pickled")
    endless: list[Any] = [threading.Lock()]
    endless.append(endless)
    assert namespace.find_culprit(endless, "it", pickle.dumps).startswith("it[0]")
