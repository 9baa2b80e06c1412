"""How a training ends before its time: a signal, an error, or an output that nobody reads any more.

None of these may cost what was learned. A signal is noted and looked at between two steps, an error is answered by a
checkpoint before it goes on its way, and a closed pipe or terminal ends the printing alone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

import torch

from dpo_core.runs.processes import world_size

__all__ = [
    "BROKEN_PIPE",
    "Interrupt",
    "Lasting",
    "delayed_interrupt",
    "discard",
    "lasting_output",
    "saved_on_error",
    "say",
]

BROKEN_PIPE = 128 + 13  # the exit status of a program whose reader went away: 128 and the number of SIGPIPE
# Ctrl-C; what schedulers, containers and kill send; what a terminal or a connection sends as it closes.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
IGNORED = [(number, signal.SIG_IGN) for number in SIGNALS if number != signal.SIGINT]


class Interrupt(threading.Event):
    """Is set when a signal has asked to stop; it knows which."""

    number = signal.SIGINT

    def stop(self, message: str) -> BaseException:
        """Make the exception that ends the program as its signal does.

        Args:
            message: what became of the run.
        Returns:
            For Ctrl-C ``KeyboardInterrupt`` with the message; for other signals ``SystemExit`` with 128 and their
            number, and the message is printed.
        """
        if self.number == signal.SIGINT:
            return KeyboardInterrupt(message)
        say(f"{signal.Signals(self.number).name}: {_for_both(message)}")
        return SystemExit(128 + self.number)


@contextmanager
def delayed_interrupt() -> Iterator[Interrupt]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into an event, to be looked at between two steps; a second one acts at once.

    >>> with delayed_interrupt() as interrupted:
    ...     signal.raise_signal(signal.SIGINT)
    ...     interrupted.is_set()
    True
    """
    interrupted = Interrupt()
    if threading.current_thread() is not threading.main_thread():  # signals arrive in the main thread only
        yield interrupted
        return
    # What nohup or a parent has set to be ignored stays so; Ctrl-C is ignored in a script's background jobs, where
    # kill -INT is meant.
    found = {number: signal.getsignal(number) for number in SIGNALS}  # None: not of Python's making
    before = {number: kept for number, kept in found.items() if kept is not None and (number, kept) not in IGNORED}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, *_: Any) -> None:
        interrupted.number = signal.Signals(number)
        interrupted.set()
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield interrupted
    finally:
        restore()


@contextmanager
def saved_on_error(
    optimizer: torch.optim.Optimizer, interrupted: Interrupt, save: Callable[[], str]
) -> Iterator[threading.Event]:
    """Write a checkpoint, and say so, when an error ends the steps in this context; the error goes on its way.

    Not in the middle of a move of the weights, which then are of no step; not of several processes, since those that
    had no error would never come to write their part; and not at a second Ctrl-C.

    Args:
        optimizer: whose moves are noted.
        interrupted: of ``delayed_interrupt``.
        save: writes a checkpoint if there is something to save, and returns what became of it, or "".
    Returns:
        An event that is set from the beginning of a move on; clear it when the step is counted.
    """
    moving = threading.Event()
    hook = optimizer.register_step_pre_hook(lambda *_: moving.set())
    try:
        yield moving
    except BaseException as error:
        again = interrupted.is_set() and isinstance(error, KeyboardInterrupt)
        if world_size() == 1 and not again:
            try:
                told = "" if moving.is_set() else save()
            except Exception as unsaved:  # it must not hide the error
                told = str(unsaved)
            if told:
                say(f"{type(error).__name__}: {_for_both(told)}")
        raise
    finally:
        hook.remove()


def _for_both(message: str) -> str:
    """Name the command line's way to go on, too, as these lines do not pass through it."""
    return message.replace("train(resume=True)", "train(resume=True), or --resume,")


def say(message: str) -> None:
    """Print a line to standard error, if anybody reads it."""
    with suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


class Lasting:
    """A stream that goes on when it cannot be written to any more, and keeps in mind why.

    Its ``status`` is what a program returns that could not write its output: 0 if it could, 1, or ``BROKEN_PIPE``.

    >>> import io
    >>> stream = Lasting(io.StringIO())
    >>> stream.write("a"), stream.status
    (1, 0)
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self.status = stream, 0  # a program may be started without the stream, as None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text if that is possible."""
        return self._try(lambda: self._stream.write(text)) or len(text)

    def flush(self) -> None:
        """Pass on what was written if that is possible."""
        self._try(lambda: self._stream.flush())

    def _try(self, work: Callable[[], Any]) -> Any:
        if self._stream is None or self.status == BROKEN_PIPE:
            return None
        before = self.status
        try:
            return work()
        except BrokenPipeError:
            self.status = BROKEN_PIPE
            discard(self._stream)
        except OSError:  # a disk that is full, a terminal that is gone
            self.status = 1
        except ValueError:
            if not getattr(self._stream, "closed", False):
                raise
            self.status = 1
        if not before and self is not sys.stderr:
            say("standard output cannot be written to any more; the training goes on, and writes its files")
        return None


def discard(stream: Any) -> None:
    """Lead what is still in a stream's buffer into nothing, so that the end of the program does not trip over it."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def lasting_output() -> Iterator[Lasting]:
    """Keep a closed pipe, a closed terminal or a full disk behind standard output or error from ending the work.

    Returns:
        Standard output as it is inside this context.
    """
    out, err = Lasting(sys.stdout), Lasting(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        yield out
