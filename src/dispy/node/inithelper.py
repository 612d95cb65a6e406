"""The process that runs the node owner's init file: `init()` at the start, `close()` at the end.

It runs beside user code: standard library and cloudpickle only. It says how `init()` went in one line of JSON on a
pipe, and leaves what the file has made for jobs in a pickle; the end of its standard input is the node's end.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from cloudpickle import cloudpickle

from dispy import namespace


def main(file: str, target: str, fd: int) -> None:
    """Run the init file `file`, write what jobs may use to `target`, and report on the descriptor `fd`."""
    names = vars(namespace.make_main())
    names["__file__"] = file
    sys.path.insert(0, os.path.dirname(file))
    before = set(names)
    try:
        exec(compile(Path(file).read_bytes(), file, "exec", dont_inherit=True), names)  # the owner's own file
        init = names.get("init")
        status = init() if callable(init) else 0
        if status:
            raise RuntimeError(f"init() returned {status!r}; 0 means that all is well")
        made = {name: names[name] for name in names if name not in before and name not in {"init", "close"}}
        left_out = _write(made, Path(target))
    except BaseException as error:
        _report(fd, error=f"{type(error).__name__}: {error}", trace="".join(traceback.format_exception(error)))
        raise SystemExit(1) from error
    _report(fd, left_out=left_out, environment={k: str(v) for k, v in made.items() if type(v) in (int, str)})
    os.close(fd)
    sys.stdin.buffer.read()  # the node lives
    if callable(close := names.get("close")):
        close()


def _write(made: dict[str, Any], target: Path) -> list[str]:
    """Write what can be pickled in one piece, so that what is shared stays so; returns the names left out."""
    left_out = []
    for name, value in list(made.items()):
        try:
            cloudpickle.dumps(value)
        except Exception:
            left_out.append(name)
            del made[name]
    data = cloudpickle.dumps(made)
    fresh = target.with_suffix(".tmp")
    fresh.write_bytes(data)
    fresh.chmod(0o644)
    fresh.replace(target)
    return left_out


def _report(fd: int, **said: object) -> None:
    os.write(fd, json.dumps(said).encode() + b"\n")
