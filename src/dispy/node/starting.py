"""How a fork server is started: its process, and what it is told first.

Nothing of what it is told is opened here.
"""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import dispy
from dispy.node import channel
from dispy.node.leftovers import MARK
from dispy.node.replies import ForkServerSpec

_BOOT: Final = (
    "import sys; sys.path[:0] = sys.argv[3:]; from dispy.node.forkserver import main; "
    "del sys.path[: len(sys.argv) - 3]; sys.path += sys.argv[3:]; main(int(sys.argv[1]), int(sys.argv[2]))"
)
"""Our own folders come first while we import from them, and last when user code is loaded."""


def dispy_folders() -> list[str]:
    """What must be on the path of a process that imports dispy and cloudpickle."""
    return list(dict.fromkeys(str(package.parent) for package in packages()))


def packages() -> tuple[Path, Path]:
    """Where dispy and cloudpickle are."""
    cloudpickle = importlib.util.find_spec("cloudpickle")  # found, not imported: the daemon has no use for it
    assert cloudpickle is not None, "installed with dispy"
    return Path(dispy.__path__[0]), Path((cloudpickle.submodule_search_locations or [])[0])


def start_process(spec: ForkServerSpec, mark: str, control: socket.socket) -> subprocess.Popen[bytes]:
    """Start the process; `mark` is in its environment, `control` the other end of its control channel.

    To be called on the event loop's thread: PDEATHSIG follows the thread that starts a process, and an executor's ends.

    Raises:
        OSError: it cannot be started.
    """
    fd = control.fileno()
    env = {name: value for name, value in spec.env.items() if not name.startswith("DISPY_SECRET")}
    account = spec.account
    if account is not None:
        env = account.environment(env)
    return subprocess.Popen(
        [spec.python, "-P", "-c", _BOOT, str(fd), str(channel.FRESH), *(spec.folders or dispy_folders())],
        stdin=subprocess.DEVNULL,
        stdout=sys.__stderr__.fileno() if sys.__stderr__ is not None else None,
        cwd=spec.cwd,
        env={**env, MARK: mark},
        pass_fds=(fd,),
        start_new_session=True,
        **(account.start() if account is not None else {}),
    )


def load_frame(spec: ForkServerSpec) -> bytes:
    """What it is told first: the computation, and how it is to run it."""
    code = spec.code or b""
    info = {
        "kind": spec.kind,
        "name": spec.name,
        "cwd": str(spec.cwd),
        "program": str(spec.cwd / spec.program) if spec.kind == "program" else "",
        "interpreter": spec.interpreter,
        "job_names": dict(spec.job_names),
        "output_limit": spec.output_limit,
        "isolate": spec.isolate,
        "setup_in": spec.setup_in,
        "nice": spec.nice,
        "made_by_init": spec.made_by_init,
        "confined": spec.account is not None,
        "client_shutdown": spec.client_shutdown,
        "growth_limit": spec.growth_limit,
        "code_size": len(code),
    }
    return channel.control_frame(channel.LOAD, info, code + spec.setup_args)
