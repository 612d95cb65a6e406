"""What a job is for a worker: a call of the computation's function, or a run of its program.

Also how a failure is told: a traceback of the user's frames, or one sentence. Standard library and cloudpickle only.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

from dispy import buffers, namespace
from dispy.node import chunk
from dispy.node.channel import CANCEL

_ERROR_SIZE: Final = 64 << 10
_SMALL: Final = frozenset({int, float, bool, type(None)})
"""Types of results that are pickled without a further look."""
_MEMBERS: Final = 16
"""A tuple of up to so many is looked through for large bytes."""
_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that programs are to find as they are elsewhere."""


class SetupRefusedError(Exception):
    """The setup function returned something that does not mean success."""


class NotStarted(BaseException):
    """The job was cancelled before its function was called."""


class UnsendableError(Exception):
    """A result cannot be pickled; the text says what of it."""


class ProgramInterrupted(KeyboardInterrupt):
    """The program ended because the job was cancelled; the text says how."""


class ProgramError(Exception):
    """The program could not be started; the text says why."""


def run_setup(computation: namespace.Computation, arguments: tuple[object, ...]) -> None:
    """Run the user's setup function, if there is one.

    Raises:
        SetupRefusedError: it returned something other than 0, 1, 2 or None.
        BaseException: what it raised.
    """
    if computation.setup is None:
        return
    try:
        status = computation.setup(*arguments)
    except TypeError as error:
        _say_arguments(error, "setup", arguments)
        raise
    if status is not None and status not in (0, 1, 2):
        raise SetupRefusedError(f"setup returned {status!r}; 0 or nothing means success")


def run_cleanup(
    computation: namespace.Computation, arguments: tuple[object, ...], *, may_end_node: bool
) -> tuple[str, bool]:
    """Run the user's cleanup function, if there is one.

    Returns:
        The traceback if it failed, else nothing; and whether it has called `dispynode_shutdown()`.
    """
    asked = False

    def dispynode_shutdown() -> None:
        """End this node when what is here has ended."""
        nonlocal asked
        if not may_end_node:
            raise PermissionError("programs may not end this node: it was started without --client_shutdown")
        asked = True

    if computation.cleanup is None:
        return "", False
    namespace.inject({"dispynode_shutdown": dispynode_shutdown})
    try:
        computation.cleanup(*arguments)
    except BaseException as error:
        _say_arguments(error, "cleanup", arguments)
        return user_trace(error), asked
    return "", asked


def _say_arguments(error: BaseException, name: str, arguments: tuple[object, ...]) -> None:
    """A function that cannot be called with what it gets has no frame: then say what that was."""
    trace = error.__traceback__
    if isinstance(error, TypeError) and trace is not None and trace.tb_next is None:
        given = f"{len(arguments)} of them" if arguments else "none"
        error.add_note(f"({name} is called with the setup_args of its node, here {given})")


def user_trace(error: BaseException, *own_files: str) -> str:
    """The traceback as text, without the frames of this program above the user's code."""
    own = {__file__, namespace.__file__, *own_files}
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in own:
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
    except Exception as unprintable:
        text = f"{type(error).__name__} (it cannot be shown: {type(unprintable).__name__})\n"
    if len(text) > _ERROR_SIZE:
        half = _ERROR_SIZE // 2
        text = f"{text[:half]}\n… {len(text) - _ERROR_SIZE} characters left out …\n{text[-half:]}"
    return text


def function_call(
    cell: memoryview, compute: Callable[..., object]
) -> Callable[[int, Any], bytes | list[buffers.Readable]]:
    """The trampoline for jobs that are calls of the computation's function."""
    loads, dumps, small, gettrace = pickle.loads, pickle.dumps, _SMALL, sys.gettrace

    def call(sequence: int, payload: Any) -> bytes | list[buffers.Readable]:
        if cell[CANCEL] == sequence:
            raise NotStarted
        try:
            arguments, named = loads(payload) if type(payload) is memoryview else buffers.loads(payload)
        except Exception as error:
            error.add_note(
                "This happened on the node, before the function was called: its arguments could not be unpickled."
            )
            raise
        del payload
        if named is None:
            return chunk.call_each(compute, arguments, dumps_result, lambda: cell[CANCEL] == sequence)
        value = compute(*arguments, **named)
        try:
            if type(value) in small:
                return dumps(value, 5)
            trace = gettrace()
        except Exception:  # of a profile function that the job has left: with that Python lets go of it
            trace = None
        if trace is None:
            return dumps_result(value)
        sys.settrace(None)  # it would be called for what is ours; the worker looks for it afterwards
        try:
            return dumps_result(value)
        finally:
            sys.settrace(trace)

    return call


def dumps_result(value: object) -> bytes | list[buffers.Readable]:
    """Pickle what a job gives back, by value where nothing else helps; in parts when it is large.

    Raises:
        UnsendableError: it cannot be pickled; the text says what of it.
    """
    try:
        if _is_large(value) or (type(value) is tuple and len(value) <= _MEMBERS and any(map(_is_large, value))):
            return buffers.dumps(value)
        apart = buffers.Apart()
        data = pickle.dumps(value, 5, buffer_callback=apart)
        return buffers.parts([data], apart.views) if apart.views else data
    except Exception:
        return _dumps_by_value(value)


def _is_large(value: object) -> bool:
    """Whether it is bytes that pickle would copy."""
    return type(value) in (bytes, bytearray) and len(value) >= buffers.LARGE  # type: ignore[arg-type]


def _dumps_by_value(value: object) -> bytes:
    try:
        return namespace.dumps_result(value)
    except Exception:
        culprit = namespace.find_culprit(value, "the result", namespace.dumps_result)
    raise UnsendableError(culprit) from None


def program_call(cell: memoryview, program: str, interpreter: str = "") -> Callable[[int, Any], bytes]:
    """The trampoline for jobs that are runs of a program.

    Args:
        cell: what the daemon and this worker share.
        program: its path.
        interpreter: command that runs it; empty: itself, or for `*.py` this Python.
    """
    command = [program]
    if program.endswith(".py"):
        interpreter = interpreter or sys.executable
    if interpreter:
        command.insert(0, interpreter)

    environ: Any = os.environ  # with `_data`: bytes, which need not be encoded each time
    spawn = os.posix_spawnp

    def call(sequence: int, payload: Any) -> bytes:
        arguments, _ = pickle.loads(payload)
        if cell[CANCEL] == sequence:
            raise NotStarted
        try:
            # Half the CPU of subprocess.Popen; descriptors of ours are closed by exec, standard input is empty here.
            pid = spawn(command[0], [*command, *map(str, arguments)], environ._data, setsigdef=_IGNORED_BY_PYTHON)
        except OSError as error:
            raise _cannot_execute(program, interpreter, error) from None
        if cell[CANCEL] == sequence:  # the signal may have come before the program was there
            os.kill(pid, signal.SIGINT)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if cell[CANCEL] == sequence and (code < 0 or code == 128 + signal.SIGINT):
            how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise ProgramInterrupted(f"the program was cancelled and {how}")
        return pickle.dumps(code)

    return call


def _cannot_execute(program: str, interpreter: str, error: OSError) -> ProgramError:
    if interpreter:
        return ProgramError(f"{program} cannot be executed: {interpreter}, which shall run it: {error.strerror}")
    reason = error.strerror
    if isinstance(error, PermissionError):
        reason = "it is not executable (chmod +x it), or its directory forbids that"
    elif error.errno == 8:
        reason = "it is neither a binary for this machine nor a script that begins with #!"
    elif isinstance(error, FileNotFoundError):
        reason = "it is not on this node, or the interpreter that its first line names is not"
    return ProgramError(f"{program} cannot be executed: {reason}")
