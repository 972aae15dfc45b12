"""What every command line shares: errors as sentences, claims, an orderly end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from io import TextIOWrapper
from typing import NoReturn, ParamSpec, TypeVar

from shardmerge.base import claims, diskerrors
from shardmerge.base.errors import UserError
from shardmerge.base.printable import printable, printable_lines
from shardmerge.report.terminal import Terminal
from shardmerge.run import needed

_P = ParamSpec("_P")
_T = TypeVar("_T")


def run(main: Callable[[], None]) -> None:
    """Run a command line; a UserError becomes one message on stderr and exit status 1.

    So does what the operating system refuses (a full disk, a folder that is read-only), and a
    package that only some jobs need.

    SIGTERM ends it as it would by itself, but only after unfinished files and claims are gone.
    """
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except _Terminated:
        claims.release_all()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    except UserError as error:
        _fail(error)
    except OSError as error:
        if not diskerrors.is_told(error):
            raise
        _fail(diskerrors.disk_error(error))
    except ModuleNotFoundError as error:
        if (told := needed.missing(error.name)) is None:
            raise
        _fail(told)
    except KeyboardInterrupt:
        sys.exit(130)


def claim(*outputs: str | os.PathLike[str]) -> bool:
    """Hold the claims on a job's outputs until it ends, telling the log of a wait.

    Returns:
        Whether another process held one of them before.
    """
    return claims.hold(*outputs, say=say)


def say(line: str) -> None:
    """Print a line for the job's log at once."""
    print(printable(line), file=sys.stderr, flush=True)


def tell(line: str) -> None:
    """Print a line for the user of the whole workflow (to stderr, so that listings stay clean)."""
    print(f"shardmerge: {printable(line)}", file=sys.stderr)


def show(text: str | Callable[[Terminal], str]) -> None:
    """Write text of several lines to stdout.

    Args:
        text: It, or what makes it for a terminal. Colours are left out where the text itself has
            characters that a terminal would act upon.
    """
    if isinstance(text, str):
        sys.stdout.write(printable_lines(text))
        return
    terminal = Terminal.of(sys.stdout)
    plain = text(replace(terminal, colour=False))
    safe = printable_lines(plain)
    sys.stdout.write(text(terminal) if terminal.colour and safe == plain else safe)


def exit_on_user_error(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return the function, made to end the process with a user's mistake and nothing around it.

    Snakemake would put its own words, a file of ours and a line of it before the message.
    """

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            sys.exit(f"error: {error}")
        except OSError as error:
            if not diskerrors.is_told(error):
                raise
            sys.exit(f"error: {diskerrors.disk_error(error)}")

    return call


def _fail(error: UserError) -> NoReturn:
    with contextlib.suppress(OSError):  # the log may be on the disk that is full
        print(f"error: {error}", file=sys.stderr)
    sys.exit(1)


class _Terminated(BaseException):
    """SIGTERM came."""


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise _Terminated
