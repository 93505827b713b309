"""User errors end a command with one line, not with a traceback."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def user_errors() -> Iterator[None]:
    """`with user_errors(): ...` around a command: what the user can mend is one line on stderr, and the exit status is 2.

    ValueError, OSError (a full disk, also under standard output) and FloatingPointError (training diverged) are the
    user's; everything else is ours and keeps its traceback. SONARKIT_DEBUG=1 shows the traceback always. Warnings
    become one line each. A pipe that its reader closed ends the command with status 0, Ctrl-C with 130.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _warn_in_one_line
        try:
            yield
            sys.stdout.flush()  # here, where a full disk is still an error of the command
        except BrokenPipeError:  # `sonarkit ... | head`: nothing is wrong
            discard_output()
            raise SystemExit(0) from None
        except (ValueError, OSError, FloatingPointError) as error:
            if os.environ.get("SONARKIT_DEBUG"):
                raise
            try:
                sys.stdout.flush()  # what was told so far comes before the error
            except OSError:
                discard_output()
            print(f"{_speaker()}: {_in_one_line(error)}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None


def discard_output() -> None:
    """Give standard output a place where the interpreter's last flush cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _speaker() -> str:
    """Who is at fault: under torchrun the rank matters."""
    return "sonarkit" if int(os.environ.get("WORLD_SIZE", 1)) == 1 else f"sonarkit (rank {os.environ.get('RANK')})"


def _in_one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:  # else "[Errno 2] No such file or directory: 'x.npy'"
        text = ": ".join(map(str, filter(None, (error.filename, error.strerror))))
    return " ".join(printable(text).split())


def _warn_in_one_line(message: Warning | str, *_: object, **__: object) -> None:
    print(f"{_speaker()}: note: {' '.join(printable(str(message)).split())}", file=sys.stderr)


def printable(text: str) -> str:
    """Text as a terminal may have it: what would steer the terminal, or has no UTF-8, is spelt out (`\\x1b`, `\\ud83d`).

    White space and marks of the direction of writing, which texts need, stay.
    """
    return re.sub(r"[^\s\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]", lambda match: ascii(match[0])[1:-1], text)
