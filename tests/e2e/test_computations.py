"""What a computation runs in, on real nodes: isolation, setup and cleanup, and the memory that setup made."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy.errors import SettingsError

sys.path.insert(0, str(Path(__file__).parent))
from packages import find_uv, wheel

SOON = 90.0


def ended(job: dispy.DispyJob) -> dispy.DispyJob:
    assert job.finish.wait(SOON), f"the job is still {job.status!r}"
    return job


# ---- isolation ----


def test_isolated_jobs_find_nothing_of_each_other(local: Callable[..., dispy.JobCluster]) -> None:
    def leave(number: int) -> tuple[int, int, bool]:
        import math

        before = getattr(math, "left_behind", -1)
        math.left_behind = number  # type: ignore[attr-defined]
        print("job", number)
        return before, os.getpid(), number in globals().setdefault("seen", [])

    cluster = local(leave, isolate=True)
    jobs = [cluster.submit(number) for number in range(12)]
    results = [job() for job in jobs]
    assert [result[0] for result in results] == [-1] * 12
    assert len({result[1] for result in results}) == 12, "a process ran two jobs"
    assert [job.stdout for job in jobs] == [f"job {number}\n" for number in range(12)]


def test_jobs_share_a_worker_without_isolation(local: Callable[..., dispy.JobCluster]) -> None:
    cluster = local(lambda number: (number, os.getpid()))
    processes = {cluster.submit(number)()[1] for number in range(20)}
    assert len(processes) <= (os.cpu_count() or 1)


def test_isolated_jobs_are_cancelled_die_and_raise_alone(
    local: Callable[..., dispy.JobCluster], tmp_path: Path
) -> None:
    def act(what: str) -> str:
        if what == "die":
            os._exit(7)
        if what == "raise":
            raise ValueError(what)
        if what == "hang":
            Path(str(tmp_path / "runs")).touch()
            time.sleep(600)
        return what

    cluster = local(act, isolate=True)
    hanging = cluster.submit("hang")
    others = [cluster.submit(what) for what in ("good", "die", "raise", "well")]
    good, dead, raised, well = [ended(job) for job in others]
    deadline = time.monotonic() + SOON
    while not (tmp_path / "runs").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    cluster.cancel(hanging)
    assert (good.result, well.result) == ("good", "well")
    assert "exit code 7" in str(dead.exception)
    assert "ValueError: raise" in str(raised.exception)
    assert ended(hanging).status == dispy.DispyJob.Terminated


def test_isolated_jobs_of_a_program(local: Callable[..., dispy.JobCluster]) -> None:
    cluster = local("/bin/echo", isolate=True)
    assert [ended(cluster.submit(word)).stdout for word in ("one", "two")] == [b"one\n", b"two\n"]


def test_an_isolated_job_leaves_setup_as_it_was(local: Callable[..., dispy.JobCluster]) -> None:
    def prepare() -> None:
        global numbers
        numbers = [1, 2, 3]

    def append(number: int) -> list[int]:
        numbers.append(number)
        return numbers

    cluster = local(append, setup=prepare, isolate=True)
    assert [cluster.submit(number)() for number in (4, 5)] == [[1, 2, 3, 4], [1, 2, 3, 5]]


# ---- where setup runs ----


def prepare_here() -> None:
    global prepared_by
    prepared_by = os.getpid()


def prepare_with_thread() -> None:
    prepare_here()
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def tidy(folder: Path) -> None:
    (folder / f"tidied-{prepared_by}").touch()


def prepare_for_tidying(folder: Path) -> None:
    prepare_here()


def prepare_in_vain() -> None:
    raise LookupError("no licence here")


def who_prepared(seconds: float = 0.0) -> tuple[int, int]:
    time.sleep(seconds)
    return prepared_by, os.getpid()


@pytest.mark.parametrize(("setup_in", "in_worker"), [("auto", False), ("node", False), ("worker", True)])
def test_setup_in(local: Callable[..., dispy.JobCluster], setup_in: str, in_worker: bool) -> None:
    cluster = local(who_prepared, setup=prepare_here, setup_in=setup_in)
    job = ended(cluster.submit())
    assert job.result, job.exception
    by, worker = job.result
    assert (by == worker) is in_worker


def test_setup_that_leaves_a_thread_runs_in_workers(local: Callable[..., dispy.JobCluster]) -> None:
    cluster = local(who_prepared, setup=prepare_with_thread)
    job = ended(cluster.submit())
    assert job.result, job.exception
    by, worker = job.result
    assert by == worker


@pytest.mark.parametrize("setup_in", ["node", "worker"])
def test_a_failing_setup_refuses_the_node_with_its_traceback(
    local: Callable[..., dispy.JobCluster],
    capsys: pytest.CaptureFixture[str],
    wait_until: Callable[..., Any],
    setup_in: str,
) -> None:
    seen: list[tuple[int, dispy.DispyNode | None]] = []

    def note(status: int, node: dispy.DispyNode | None, job: dispy.DispyJob | None) -> None:
        seen.append((status, node))

    cluster = local(who_prepared, setup=prepare_in_vain, setup_in=setup_in, cluster_status=note)
    job = cluster.submit()
    wait_until(lambda: dispy.DispyNode.Closed in [status for status, _ in seen])
    assert ended(job).status == dispy.DispyJob.Abandoned, "no other node can come"
    (node,) = [node for status, node in seen if status == dispy.DispyNode.Closed]
    assert node is not None
    for text in (capsys.readouterr().err, job.exception or "", node.reason):
        assert "LookupError: no licence here" in text
        assert "in prepare_in_vain" in text
        assert "site-packages" not in text
        assert "calls.py" not in text


@pytest.mark.parametrize("nodes", ["127.0.0.1", "*"])
def test_a_file_that_is_gone_before_a_node_has_it_ends_the_jobs(
    clusters: Callable[..., dispy.JobCluster],
    dispynode: Callable[..., Any],
    free_base_port: int,
    tmp_path: Path,
    nodes: str,
) -> None:
    """Nobody waits for a content that cannot come back."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100_000)
    cluster = clusters(len, depends=[str(file)], nodes=nodes, dispy_port=free_base_port)
    file.unlink()
    job = cluster.submit("x")
    dispynode()
    assert ended(job).status == dispy.DispyJob.Abandoned
    assert f"{file} cannot be read: No such file or directory" in str(job.exception)


def test_cleanup_runs_where_setup_ran(local: Callable[..., dispy.JobCluster], tmp_path: Path) -> None:
    this_machine = dispy.NodeAllocate("*", setup_args=(tmp_path,))
    for setup_in in ("node", "worker"):
        cluster = local(
            who_prepared, setup=prepare_for_tidying, cleanup=tidy, setup_in=setup_in, nodes=["local", this_machine]
        )
        prepared = {ended(cluster.submit(0.3)).result[0] for _ in range(2)}
        cluster.close()
        assert {f"tidied-{pid}" for pid in prepared} == {path.name for path in tmp_path.iterdir()}
        for path in tmp_path.iterdir():
            path.unlink()


def test_an_unknown_place_for_setup_is_refused() -> None:
    with pytest.raises(SettingsError, match="'node', 'worker' or 'auto'"):
        dispy.JobCluster(who_prepared, nodes="local", setup_in="cellar")


# ---- the directory ----


def test_a_directory_that_a_job_removes_is_made_again_with_its_files(
    local: Callable[..., dispy.JobCluster], tmp_path: Path
) -> None:
    def read(remove: bool) -> tuple[str, str]:
        import shutil
        from pathlib import Path

        here = Path.cwd()
        content = (here / "data.txt").read_text()
        if remove:
            shutil.rmtree(here)
        return str(here), content

    data = tmp_path / "data.txt"
    data.write_text("some data")
    cluster = local(read, depends=[str(data)])
    removing = ended(cluster.submit(True))
    assert removing.result is not None, removing.exception
    assert "the directory of the computation is gone" in removing.stderr
    assert {ended(cluster.submit(False)).result for _ in range(10)} == {removing.result}


# ---- requirements ----


def test_packages_that_only_nodes_have_are_installed_once_for_all_computations(
    local: Callable[..., dispy.JobCluster], tmp_path: Path
) -> None:
    """As with numpy on a client that does not have it, neither to ship the function nor to read what it returns."""

    def import_it() -> None:
        global kept
        import dispy_test_absent as kept  # type: ignore[import-not-found]

    def use_it(whole: bool) -> Any:
        import importlib.util
        import sys

        import dispy_test_absent

        vector = dispy_test_absent.Vector()
        if whole:
            return vector
        is_kept = kept is dispy_test_absent
        return vector.norm(), is_kept, sys.prefix, importlib.util.find_spec("pytest") is None

    line = wheel(tmp_path, "dispy_test_absent", "class Vector:\n    def norm(self):\n        return 5.0\n")
    listed, project = tmp_path / "requirements.txt", tmp_path / "pyproject.toml"
    listed.write_text("-r more.txt\n")
    (tmp_path / "more.txt").write_text(f"# numbers\n{line}  # of one module\n")
    project.write_text(f'[project]\nname = "x"\nversion = "1"\ndependencies = ["{line}"]\n')

    job = ended(local(use_it, setup=import_it, requirements=str(listed)).submit(False))
    assert job.result is not None, job.exception
    norm, is_kept, prefix, is_alone = job.result
    assert (norm, is_kept) == (5.0, True)
    assert is_alone, "packages of the node's own environment are in reach"
    assert not list(Path(prefix).glob("lib/*/site-packages/dispy/__init__.py"))
    assert not list(Path(prefix).glob("lib/*/site-packages/cloudpickle"))

    (tmp_path / "dispy_test_absent-1.0-py3-none-any.whl").unlink()  # from now on only that environment has it
    for required in ([line], project):
        cluster = local(use_it, setup=import_it, requirements=required)
        assert ended(cluster.submit(False)).result == job.result
    unreadable = ended(cluster.submit(True))
    assert unreadable.result is None
    assert "dispy_test_absent" in (unreadable.exception or "")


@pytest.mark.real
def test_uv_makes_environments_where_it_is_there(
    local: Callable[..., dispy.JobCluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use_required() -> tuple[int, str, str, bool]:
        import importlib.util
        import sys

        import dispy_test_uv  # type: ignore[import-not-found]

        with open(f"{sys.prefix}/pyvenv.cfg") as config:
            return dispy_test_uv.ANSWER, sys.prefix, config.read(), importlib.util.find_spec("pip") is None

    monkeypatch.setenv("PATH", os.pathsep.join((str(find_uv().parent), os.environ["PATH"])))
    required = [wheel(tmp_path, "dispy_test_uv", "ANSWER = 44")]
    job = ended(local(use_required, requirements=required).submit())
    assert job.result is not None, job.exception
    answer, _, config, without_pip = job.result
    assert (answer, without_pip) == (44, True)
    assert any(line.startswith("uv = ") for line in config.splitlines())
    (tmp_path / "dispy_test_uv-1.0-py3-none-any.whl").unlink()
    assert ended(local(use_required, requirements=required).submit()).result == job.result, "it is built once"

    refused = ended(local(use_required, requirements=[f"nothing @ {tmp_path.as_uri()}/nothing-1.0.zip"]).submit())
    assert refused.status == dispy.DispyJob.Abandoned
    first, _, output = (refused.exception or "").partition("\n")
    assert "uv pip install" in first
    assert "nothing-1.0.zip" in output, "what uv said is missing"


def test_a_program_runs_with_its_requirements(local: Callable[..., dispy.JobCluster], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import dispy_test_program; print(dispy_test_program.ANSWER)")
    listed = tmp_path / "requirements.txt"
    listed.write_text(f"# what it needs\n{wheel(tmp_path, 'dispy_test_program', 'ANSWER = 43')}\n")
    job = ended(local(str(tmp_path / "program.py"), requirements=listed).submit())
    assert job.stdout == b"43\n", job.stderr


def test_requirements_that_do_not_exist_refuse_the_node(local: Callable[..., dispy.JobCluster], tmp_path: Path) -> None:
    cluster = local(who_prepared, requirements=[f"nothing @ {(tmp_path / 'nothing-1.0-py3-none-any.whl').as_uri()}"])
    job = ended(cluster.submit())
    assert job.status == dispy.DispyJob.Abandoned
    text = job.exception or ""
    assert "the environment with nothing @ file:///" in text.partition("\n")[0]
    assert "the environment with nothing @ file:///" in cluster.explain(job)
    assert "nothing-1.0-py3-none-any.whl" in text.partition("\n")[2], "what pip said is missing"


@pytest.mark.real
def test_a_package_from_the_index(local: Callable[..., dispy.JobCluster], tmp_path: Path) -> None:
    try:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path), "iniconfig==2.0.0"],
            check=True,
            capture_output=True,
            timeout=60,
        )
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"no package index can be reached: {error}")

    def version() -> str:
        import importlib.metadata

        return importlib.metadata.version("iniconfig")

    assert ended(local(version, requirements=["iniconfig==2.0.0"]).submit()).result == "2.0.0"


# ---- what setup made, in memory ----

LARGE = 100 << 20


def private_and_shared() -> tuple[int, int]:
    """Bytes that this process has for itself, and those that it shares."""
    sizes = {"Private": 0, "Shared": 0}
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        for line in file:
            kind = line.partition("_")[0]
            if kind in sizes and line.split(":")[0] in {f"{kind}_Clean", f"{kind}_Dirty"}:
                sizes[kind] += int(line.split()[1]) << 10
    return sizes["Private"], sizes["Shared"]


def make_buffers() -> None:
    global text, numbers
    import numpy

    text = b"\1" * LARGE
    numbers = numpy.ones(LARGE // 8)


def read_buffers(seconds: float) -> tuple[int, float, tuple[int, int]]:
    import zlib

    checksum, total = zlib.crc32(text), float(numbers.sum())
    time.sleep(seconds)
    return checksum, total, private_and_shared()


def test_buffers_that_setup_made_are_shared_by_workers(local: Callable[..., dispy.JobCluster]) -> None:
    pytest.importorskip("numpy")
    cluster = local(read_buffers, setup=make_buffers)
    results = [ended(job).result for job in [cluster.submit(0.5) for _ in range(2)]]
    for _, total, (private, shared) in results:
        assert total == LARGE // 8
        assert shared > 2 * LARGE
        assert private < LARGE // 5


def make_counter(start: int, step: int = 1) -> int:
    global counter, step_size
    counter, step_size = multiprocessing.Value("i", start), step
    return 1


def count_up(times: int) -> int:
    for _ in range(times):
        with counter.get_lock():
            counter.value += step_size
    return os.getpid()


def read_counter() -> int:
    return int(counter.value)


def count_or_read(times: int) -> int:
    return count_up(times) if times else read_counter()


def test_a_shared_value_of_setup_is_one_for_all_jobs_of_a_node(local: Callable[..., dispy.JobCluster]) -> None:
    item = dispy.NodeAllocate("*", setup_args=(5,))
    cluster = local(count_or_read, setup=make_counter, nodes=["local", item])
    for job in [cluster.submit(1000) for _ in range(8)]:
        assert ended(job).result, job.exception
    assert cluster.submit(0)() == 8005


@pytest.mark.parametrize("code", [0, 1, 2, None])
def test_return_values_of_setup_that_mean_success(local: Callable[..., dispy.JobCluster], code: int | None) -> None:
    assert local(lambda: 1, setup=lambda: code).submit()() == 1


def test_a_module_that_setup_imported_is_there_for_jobs(local: Callable[..., dispy.JobCluster]) -> None:
    def prepare() -> None:
        import decimal
        import sqlite3  # noqa: F401

        decimal.prepared = True  # type: ignore[attr-defined]

    def use() -> bool:
        import decimal
        import sqlite3

        return decimal.prepared and bool(sqlite3.sqlite_version)  # type: ignore[attr-defined]

    assert local(use, setup=prepare).submit()() is True


def test_init_depends_runs_before_the_rest_is_loaded(local: Callable[..., dispy.JobCluster]) -> None:
    def init_depends() -> None:
        import builtins

        builtins.opening_words = "init"  # type: ignore[attr-defined]

    class Late:
        seen = "nothing"

        def __reduce__(self) -> Any:
            return eval, ("opening_words + ' came first'",)

    late = Late()
    assert local(lambda: str(late), depends=[init_depends]).submit()() == "init came first"


# ---- each node its own ----


class EachItsOwn(dispy.NodeAllocate):
    def allocate(self, cluster: Any, ip_addr: str, name: str, cpus: int, *rest: Any) -> int:
        assert not self.depends, "what one node got is still there for the next"
        assert not self.setup_args
        path = Path(self.folder) / f"{name}.txt"  # type: ignore[attr-defined]
        path.write_text(f"for {name}")
        self.depends = [str(path)]
        self.setup_args = (path.name,)
        return 1


def read_own_file(name: str) -> None:
    global own_text
    own_text = Path(name).read_text()


def tell_own(seconds: float) -> tuple[str, str]:
    time.sleep(seconds)
    return dispy_node_name, own_text  # type: ignore[name-defined]  # noqa: F821


def test_files_and_setup_args_of_single_nodes(
    dispynode: Callable[..., Any], free_base_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPY_PORT", str(free_base_port))
    for name in ("one", "two"):
        dispynode("--cpus", "1", name=name)
    item = EachItsOwn("*")
    item.folder = str(tmp_path)  # type: ignore[attr-defined]
    with dispy.JobCluster(tell_own, nodes=[item], setup=read_own_file) as cluster:
        deadline = time.monotonic() + SOON
        while len(cluster.status().nodes) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        results = {ended(job).result for job in [cluster.submit(0.3) for _ in range(4)]}
    cluster.shutdown()
    assert results == {("one", "for one"), ("two", "for two")}


def test_files_stay_for_a_later_cluster_of_the_same_dest_path(
    dispynode: Callable[..., Any], free_base_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPY_PORT", str(free_base_port))
    dispynode()
    (tmp_path / "data.txt").write_text("kept")
    settings: dict[str, Any] = {"nodes": ["127.0.0.1"], "dest_path": "kept-here", "cleanup": False}
    with dispy.JobCluster(lambda: 1, depends=[str(tmp_path / "data.txt")], **settings) as cluster:
        assert cluster.submit()() == 1
    with dispy.JobCluster(lambda: Path("data.txt").read_text(), **settings) as cluster:
        assert cluster.submit()() == "kept"
    cluster.shutdown()


# ---- other interpreters ----


@pytest.mark.real
def test_a_client_of_another_python_uses_that_python_of_the_node(
    dispynode: Callable[..., Any], free_base_port: int, tmp_path: Path
) -> None:
    found = other_python()
    if found is None:
        pytest.skip("there is no second CPython here that this test can make a client of")
    version, folder = found
    environment = tmp_path / "client"
    packages = ["msgspec", "cloudpickle", "cryptography", "psutil", "click", "rich"]
    try:
        subprocess.run([folder / f"python{version}", "-m", "venv", environment], check=True, capture_output=True)
        subprocess.run(
            [environment / "bin/pip", "install", "-q", *packages], check=True, capture_output=True, timeout=100
        )
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"no client for Python {version} could be made: {error}")
    dispynode(env={"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"})
    program = tmp_path / "program.py"
    program.write_text(
        "import dispy, sys\n"
        "def version(number):\n    import sys\n    return number, sys.version_info[:2]\n"
        "with dispy.JobCluster(version, nodes=['127.0.0.1']) as cluster:\n"
        "    assert cluster.submit(7)() == (7, sys.version_info[:2])\n"
    )
    source = Path(dispy.__file__).parents[1]
    done = subprocess.run(
        [environment / "bin/python", program],
        env={**os.environ, "PYTHONPATH": str(source), "DISPY_PORT": str(free_base_port)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def other_python() -> tuple[str, Path] | None:
    """Version and folder of an interpreter that is not this one, for which dispy is made."""
    for version in ("3.11", "3.12", "3.13"):
        if version == f"{sys.version_info.major}.{sys.version_info.minor}":
            continue
        places = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
        places += sorted(Path(sys.base_prefix).parent.glob(f"{version}*/bin"))  # as version managers lay them out
        for place in places:
            path = place / f"python{version}"
            if path.exists() and subprocess.run([path, "-c", ""], check=False, capture_output=True).returncode == 0:
                return version, place
    return None


def test_explain_says_how_long_setup_has_been_running(
    local: Callable[..., dispy.JobCluster], wait_until: Callable[..., Any]
) -> None:
    cluster = local(lambda: 1, setup=lambda: time.sleep(2.5))
    job = cluster.submit()
    wait_until(lambda: "setup still running since 1 s" in cluster.explain(job))
    assert ended(job).result == 1


# ---- the user's own modules ----

PROJECT = {
    "plain.py": "import only_here\nVALUE = only_here.VALUE + 1\n",
    "only_here.py": "VALUE = 1\n",
    "pkg/__init__.py": "",
    "pkg/sub.py": (
        "from . import sibling\nfrom .deep.leaf import LEAF\n\n\ndef value():\n    return sibling.VALUE + LEAF\n"
    ),
    "pkg/unseen.py": "VALUE = 0\n",
    "pkg/sibling.py": "VALUE = 10\n",
    "pkg/deep/__init__.py": "",
    "pkg/deep/leaf.py": "from ..other import OTHER\n\nLEAF = 100 + OTHER\n",
    "pkg/other.py": "OTHER = 1000\n",
    "space/inner.py": "VALUE = 10000\n",
    "late.py": "import later\n\nVALUE = later.VALUE\n",
    "later.py": "VALUE = 100000\n",
    "program.py": (
        "import dispy\nimport plain\nfrom pkg import sub\nimport space.inner\n\n\n"
        "def total(number):\n    import late\n    from pkg import unseen\n    import absent_here_only\n\n"
        "    number += unseen.VALUE + plain.VALUE\n"
        "    return number + sub.value() + space.inner.VALUE + late.VALUE + absent_here_only.VALUE\n\n\n"
        "if __name__ == '__main__':\n"
        "    with dispy.JobCluster(total, nodes='local', requirements=REQUIRED) as cluster:\n"
        "        job = cluster.submit(1000000)\n        job()\n        print(job.result, job.exception or '')\n"
    ),
}


def test_own_modules_travel_without_being_named(tmp_path: Path) -> None:
    required = wheel(tmp_path, "absent_here_only", "VALUE = 2000000")
    for name, text in PROJECT.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("REQUIRED", repr([required])))
    program = tmp_path / "project/program.py"
    done = subprocess.run(
        [sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == [str(1000000 + 2 + 10 + 1100 + 10000 + 100000 + 2000000)], done.stderr + done.stdout


HELPERS = """
import time
import dispy

class Conf:
    def __init__(self, path):
        self.path = path
        open(path).close()

    def __reduce__(self):
        return Conf, (self.path,)

class Slow:
    def __reduce__(self):
        return time.sleep, (3600,)

conf, slow = Conf("only_here.txt"), Slow()

class Plot:
    conf = conf

def show():
    return conf.path, slow

def compute(x):
    return x + 1

if __name__ == "__main__":
    with dispy.JobCluster(compute, nodes="local") as cluster:
        jobs = [cluster.submit(each) for each in (1, Plot(), 2)]
        cluster.wait()
        for job in jobs:
            print(job.result, " ".join((job.exception or "-").split()))
"""


def test_helpers_that_nodes_cannot_load_harm_only_the_jobs_that_need_them(tmp_path: Path) -> None:
    (tmp_path / "only_here.txt").touch()
    (tmp_path / "program.py").write_text(HELPERS)
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    first, second, third = done.stdout.splitlines() or [done.stderr] * 3
    assert (first, third) == ("2 -", "3 -"), done.stdout + done.stderr
    sentence = "'Plot' of the program's __main__, which this needs, cannot be loaded on this node: FileNotFoundError"
    assert sentence in second, second
