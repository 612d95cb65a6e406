"""What `pack` collects and how arguments are pickled; loaded again in a fresh interpreter as on a node."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dispy
from dispy import buffers, shipping
from dispy.errors import ShippingError
from dispy.settings import INLINE_SIZE
from dispy.unpickling import loads_arguments

FOLDERS = [str(Path(dispy.__path__[0]).parent)]

NODE = """
import os, pickle, sys, traceback
from dispy import namespace
os.chdir(sys.argv[1])
sys.path.insert(0, os.getcwd())
namespace.make_main()
with open("packed", "rb") as file:
    code, calls = pickle.load(file)
computation = namespace.load_computation(code)
if computation.setup:
    computation.setup()
results = []
for data in calls:
    try:
        args, kwargs = pickle.loads(data)
        value = computation.compute(*args, **kwargs)
        try:
            results.append(pickle.dumps(value))
        except Exception:
            results.append(namespace.dumps_result(value))
    except BaseException as error:
        omitted = computation.omitted.get(getattr(error, "name", None), "")
        results.append(pickle.dumps(f"{type(error).__name__}: {error} ({omitted})"))
with open("results", "wb") as file:
    pickle.dump(results, file)
"""

CLIENT = """
import pickle, sys
sys.path += {folders!r}
from dispy import shipping as _shipping

{source}

def _ship(compute, *calls, depends=(), setup=None):
    import os, pathlib, subprocess, sys, tempfile
    there = pathlib.Path(tempfile.mkdtemp(dir=os.environ["NODE"]))
    shipment = _shipping.pack(compute, depends, setup=setup)
    for file in shipment.files:
        target = there / file.dest
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.path.read_bytes())
    packed = shipment.code, [_shipping.dumps_arguments(shipment, call, {{}}) for call in calls]
    (there / "packed").write_bytes(pickle.dumps(packed))
    subprocess.run([sys.executable, "-P", os.environ["NODE_SCRIPT"], str(there)], check=True, cwd="/",
                   env={{**os.environ, "PYTHONPATH": os.pathsep.join({folders!r})}})
    return [_shipping.loads_result(data) for data in pickle.loads((there / "results").read_bytes())]

{test}
"""


@pytest.fixture
def run_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a client program (script, -c or typed in) that ships functions to a fresh interpreter and checks."""
    node = tmp_path / "node"
    node.mkdir()
    (tmp_path / "node.py").write_text(NODE)
    monkeypatch.setenv("NODE", str(node))
    monkeypatch.setenv("NODE_SCRIPT", str(tmp_path / "node.py"))
    client = tmp_path / "client"
    client.mkdir(exist_ok=True)

    def run(source: str, test: str, how: str = "script") -> str:
        text = CLIENT.format(folders=FOLDERS, source=textwrap.dedent(source), test=textwrap.dedent(test))
        if how == "script":
            (client / "prog.py").write_text(text)
            command, given = [sys.executable, str(client / "prog.py")], ""
        elif how == "-c":
            command, given = [sys.executable, "-c", text], ""
        else:
            command, given = [sys.executable, "-i", "-q"], f"exec({text!r})\nprint('typed')\n"
        done = subprocess.run(command, input=given, cwd=client, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout

    run.folder = client  # type: ignore[attr-defined]
    return run


ALL_KINDS = """
import functools, math, threading
G = 5
BIG = [1, 2, 3]
def helper(x):
    return math.sqrt(x) + G
def compute(x):
    return helper(x), len(BIG)
def twice(f):
    @functools.wraps(f)
    def wrapper(*args):
        return 2 * f(*args)
    return wrapper
@twice
def decorated(x):
    return x + G
def closure(y):
    return lambda x: x + y + G
@functools.lru_cache(maxsize=7)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
class C:
    def __init__(self, v):
        self.v = v
    def m(self, x):
        return self.v + x + G
    @staticmethod
    def s(x):
        return x * G
    @classmethod
    def k(cls, x):
        return cls(x).v
    def __call__(self, x):
        return self.v * x
def setup():
    global G, made
    G = 50
    made = "made"
def uses_made():
    return made, G, globals()["helper"](0)
"""


@pytest.mark.parametrize("how", ["script", "-c", "typed"])
def test_every_kind_of_function(run_client: Any, how: str) -> None:
    out = run_client(
        ALL_KINDS,
        """\
        assert _ship(compute, (4,)) == [(7.0, 3)]
        assert _ship(lambda x: helper(x), (4,)) == [7.0]
        assert _ship(decorated, (1,)) == [12]
        assert _ship(closure(10), (1,)) == [16]
        assert _ship(fib, (30,)) == [832040]
        assert _ship(functools.partial(helper, 4), ()) == [7.0]
        assert _ship(C(3).m, (1,), (C(4), 1)) == [9, 10]
        assert _ship(C.m, (C(4), 1)) == [10]
        assert _ship(C.s, (2,)) == [10]
        assert _ship(C.k, (2,)) == [2]
        assert _ship(C(3), (2,)) == [6]
        assert _ship(uses_made, (), setup=setup) == [("made", 50, 50.0)]
        print("all fine")
        """,
        how,
    )
    assert "all fine" in out


def test_classes_meet_again(run_client: Any) -> None:
    out = run_client(
        """
        import dataclasses, enum
        class Color(enum.Enum):
            RED = 1
        @dataclasses.dataclass
        class Point:
            x: int
            n = 0
        def setup():
            Point.n = 7
        def compute(p):
            p.x += 1
            return p, isinstance(p, Point), Point.n, Color.RED
        def apply(f, x):
            return f(x)
        """,
        """\
        (p, same, n, color), = _ship(compute, (Point(1),), setup=setup)
        assert type(p) is Point and p.x == 2 and same and n == 7 and Point.n == 0 and color is Color.RED
        class Late:
            def __init__(self): self.v = 3
        def late(x): return Late().v + x
        assert _ship(apply, (lambda x: late(x) + 1, 2), (abs, -1)) == [6, 1]
        (made,) = _ship(apply, (lambda x: lambda y: x + y, 1))
        assert made(2) == 3
        print("all fine")
        """,
    )
    assert "all fine" in out


def test_globals_that_cannot_travel_are_named_when_they_are_missed(run_client: Any) -> None:
    out = run_client(
        """
        import threading
        LOCK = threading.Lock()
        HUGE = b"x" * (4 << 20)
        def compute(deep):
            if deep:
                with LOCK:
                    return 1
            return 2
        def other():
            return len(HUGE)
        def call(name):
            return globals()[name]()
        """,
        """\
        print(_ship(compute, (False,), (True,)))
        print(_ship(call, ("other",)))
        """,
    )
    assert "[2, \"NameError: name 'LOCK' is not defined (cannot pickle '_thread.lock' object)\"]" in out
    assert "name 'HUGE' is not defined (it is large, and nothing that the computation calls names it)" in out


def test_own_modules_travel_as_files(run_client: Any) -> None:
    folder = run_client.folder
    (folder / "single.py").write_text("import other\nclass C:\n    v = 1\ndef f(): return other.g()\n")
    (folder / "other.py").write_text("def g(): return 'g'\n")
    (folder / "unused.py").write_text("")
    (folder / "pack" / "sub").mkdir(parents=True)
    (folder / "pack" / "__init__.py").write_text("")
    (folder / "pack" / "sub" / "__init__.py").write_text("from .deep import D\n")
    (folder / "pack" / "sub" / "deep.py").write_text("from .. import top\nclass D:\n    v = top.T\n")
    (folder / "pack" / "top.py").write_text("T = 3\n")
    out = run_client(
        """
        import single, unused
        from pack.sub import D
        def compute(c):
            import other
            return single.f(), isinstance(c, single.C), D.v, other.g(), c
        """,
        """\
        (a, b, c, d, e), = _ship(compute, (single.C(),))
        assert (a, b, c, d) == ("g", True, 3, "g") and type(e) is single.C
        print(sorted(file.dest for file in _shipping.pack(compute).files))
        """,
    )
    names = ["other.py", "pack/__init__.py", "pack/sub/__init__.py", "pack/sub/deep.py", "pack/top.py", "single.py"]
    assert out.strip() in (str(names), str(sorted([*names, "unused.py"])))


def test_functions_made_in_own_modules_use_the_globals_of_these(run_client: Any) -> None:
    (run_client.folder / "making.py").write_text(
        textwrap.dedent(
            """
            import functools, threading
            LOCK = threading.Lock()
            calls = 0
            def counted(function):
                @functools.wraps(function)
                def wrapper(*args):
                    global calls
                    with LOCK:
                        calls += 1
                    return function(*args)
                return wrapper
            def adding(number):
                def add(value):
                    with LOCK:
                        return value + number + calls
                return add
            def how_many():
                return calls
            """
        )
    )
    out = run_client(
        """
        import making
        @making.counted
        def compute(function):
            return function(1), making.how_many()
        """,
        """\
        print(_ship(compute, (making.adding(10),), (making.adding(20),)))
        """,
    )
    assert out.strip() == "[(12, 1), (23, 2)]"


def test_a_function_that_uses_nothing_of_its_module_does_not_import_it_there(run_client: Any) -> None:
    (run_client.folder / "making.py").write_text(
        textwrap.dedent(
            """
            import os, math
            if "CLIENT" not in os.environ:
                raise ImportError("not everything is there")
            def rounding():
                def compute(value):
                    return math.floor(value)
                return compute
            """
        )
    )
    out = run_client(
        """
        import os
        os.environ["CLIENT"] = "1"
        import making
        compute = making.rounding()
        del os.environ["CLIENT"]
        """,
        """\
        print(_ship(compute, (1.5,)))
        """,
    )
    assert out.strip() == "[1]"


def test_depends_of_every_kind(run_client: Any) -> None:
    folder = run_client.folder
    (folder / "data").mkdir()
    (folder / "data" / "numbers.txt").write_text("1 2")
    outside = folder.parent / "outside.txt"
    outside.write_text("3")
    (folder / "pack").mkdir()
    (folder / "pack" / "__init__.py").write_text("")
    (folder / "pack" / "__pycache__").mkdir()
    (folder / "pack" / "__pycache__" / "x.pyc").write_text("")
    (folder / "pack" / "table.csv").write_text("a,b")
    out = run_client(
        """
        import pack
        def helper():
            return open("data/numbers.txt").read() + open("outside.txt").read()
        class K:
            v = 4
        def compute(name):
            import pack, os
            return globals()[name](), K.v, open(os.path.join(os.path.dirname(pack.__file__), "table.csv")).read()
        """,
        f"""\
        depends = ["data/numbers.txt", {str(outside)!r}, helper, K(), pack]
        assert _ship(compute, ("helper",), depends=depends) == [("1 23", 4, "a,b")]
        print(sorted(file.dest for file in _shipping.pack(compute, depends).files))
        """,
    )
    assert out.strip() == str(["data/numbers.txt", "outside.txt", "pack/__init__.py", "pack/table.csv"])


# Errors


def test_what_is_missing_or_unusable_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShippingError, match=r"/no/such/file cannot be sent to the nodes: No such file"):
        shipping.pack(len, ["/no/such/file"])
    with pytest.raises(ShippingError, match="depends: 5 is neither a file"):
        shipping.pack(len, [5])
    with pytest.raises(ShippingError, match="'no-such-program' is neither a file here nor a command"):
        shipping.pack("no-such-program")
    program = tmp_path / "noexec.sh"
    program.touch()
    with pytest.raises(ShippingError, match=r"noexec.sh is not executable: chmod \+x "):
        shipping.pack(str(program))
    with pytest.raises(ShippingError, match="a computation is a function or the path of a program, not 5"):
        shipping.pack(5)  # type: ignore[arg-type]
    with pytest.raises(ShippingError, match="a program cannot use functions"):
        shipping.pack("true", [len])
    with pytest.raises(ShippingError, match="module sys has no file"):
        shipping.pack(len, [sys])


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    bad = folder / b"na\xefve".decode(errors="surrogateescape")
    bad.write_text("1")
    for depends in ([bad], [str(bad)], [folder]):
        with pytest.raises(ShippingError, match=r"na\\udcefve' cannot be sent to the nodes: .* not UTF-8"):
            shipping.pack(len, depends)
    shipment = shipping.pack(len)
    with pytest.raises(ShippingError, match=r"na\\udcefve' cannot be sent to the nodes: .* not UTF-8"):
        shipping.dumps_for_job(shipment, [bad], (), {})
    with pytest.raises(ShippingError, match=r"na\\udcefve' cannot be used: its name is not UTF-8"):
        shipping.pack(str(bad))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(mode=0)
    with pytest.raises(ShippingError, match=f"{secret} cannot be sent to the nodes: Permission denied"):
        shipping.pack(len, [secret])


def test_a_directory_in_depends_goes_with_its_tree(tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").touch()
    assert [file.dest for file in shipping.pack(len, [tmp_path / "d"]).files] == ["d/e/f"]


class Holder:
    def __init__(self, value: object) -> None:
        self.value = value


def test_the_part_that_cannot_be_pickled_is_named() -> None:
    import threading

    lock = threading.Lock()
    shipment = shipping.pack(len)
    for args, kwargs, words in (
        ((1, {"a": [Holder(lock)]}), {}, r"argument 2\['a'\]\[0\].value \(a _thread.lock\) cannot be pickled"),
        ((), {"key": (lock,)}, r"argument 'key'\[0\] \(a _thread.lock\)"),
        ((lambda: lock,), {}, "argument 1's variable 'lock'"),
        ((functools.partial(len, lock),), {}, r"argument 1.args\[0\]"),
        (((number for number in ()),), {}, r"argument 1 \(a generator\)"),
    ):
        with pytest.raises(ShippingError, match=words):
            shipping.dumps_arguments(shipment, args, kwargs)
    with pytest.raises(ShippingError, match="<lambda>'s variable 'lock'"):
        shipping.pack(lambda: lock)
    with pytest.raises(ShippingError, match=r"__self__.value"):
        shipping.pack(functools.partial(Holder(lock).__init__, 1))


# Programs


def test_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "bin" / "tool"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    data = tmp_path / "data"
    data.touch()
    shipment = shipping.pack("bin/tool", ["data"])
    assert (shipment.kind, shipment.name, shipment.program) == ("program", "tool", "bin/tool")
    assert [file.dest for file in shipment.files] == ["data", "bin/tool"]
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    assert shipping.pack("tool").program == "bin/tool"
    monkeypatch.chdir("/")
    assert shipping.pack("true").files == []
    assert shipping.pack("true").program.endswith("/true")
    assert pickle.loads(shipping.dumps_arguments(shipment, (1, "a b"), {"ignored": 1})) == (("1", "a b"), {})


# Arguments


def test_plain_arguments_are_plain_pickles() -> None:
    shipment = shipping.pack(len)
    for args in ((7,), (b"x" * 100_000, "y" * 100_000), ([1.0] * 1000,), ()):
        data = shipping.dumps_arguments(shipment, args, {"k": 1})
        assert pickle.loads(b"".join(data) if isinstance(data, list) else data) == (args, {"k": 1})
    assert shipping.dumps_setup_args(shipment, ()) == b""
    assert pickle.loads(shipping.dumps_setup_args(shipment, (1, "a"))) == (1, "a")


def test_large_bytes_are_not_copied_and_what_can_change_is() -> None:
    shipment = shipping.pack(len)
    text, changing, array = b"x" * 200_000, bytearray(b"y" * 200_000), np.zeros(200_000, np.uint8)
    nested = [np.zeros(200_000, np.uint8)]

    parts = shipping.dumps_arguments(shipment, (text, changing), {"array": array})
    later = shipping.dumps_arguments(shipment, (nested,), {})
    changing[0] = array[0] = nested[0][0] = 7

    assert isinstance(parts, list)
    assert any(part is text for part in parts)
    args, named = buffers.loads(b"".join(parts))
    assert args == (text, bytearray(b"y" * 200_000))
    assert type(args[1]) is bytearray
    assert not named["array"].any()
    assert isinstance(later, list)
    assert not buffers.loads(b"".join(later))[0][0][0].any()


def test_arguments_are_in_parts_exactly_if_they_are_too_large_for_a_batch() -> None:
    shipment = shipping.pack(len)
    for size in (33_000, 60_000, buffers.LARGE - 100, buffers.LARGE, 100_000):
        for value in (bytes(size), bytearray(size), np.zeros(size, np.uint8)):
            data = shipping.dumps_arguments(shipment, (value,), {})
            total = sum(map(len, data)) if isinstance(data, list) else len(data)
            assert total > size
            assert isinstance(data, list) == (total > INLINE_SIZE)


def test_large_arguments_of_classes_that_nodes_do_not_know_travel_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    shipment = shipping.pack(len)
    kind = type("Late", (), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Late", kind, raising=False)
    thing = kind()
    thing.array = np.ones(200_000, np.uint8)

    data = shipping.dumps_arguments(shipment, (thing, bytes(200_000)), {})

    assert isinstance(data, bytes)
    (made, content), _ = pickle.loads(data)
    assert made.array.sum() == 200_000
    assert content == bytes(200_000)


def test_what_jobs_are_called_with_is_no_part_of_what_travels() -> None:
    data = shipping.dumps_arguments(shipping.pack(len), (np.zeros(200_000, np.uint8),), {})
    body = bytearray(b"".join(data))  # type: ignore[arg-type]

    (array,), _ = loads_arguments(body)
    array[0] = 7

    assert not loads_arguments(body)[0][0].any()


def test_python_is_named() -> None:
    assert shipping.pack(len).python == f"cpython-{sys.version_info.major}.{sys.version_info.minor}"
    assert shipping.pack(len).name == "len"
