"""User errors end a command with one sentence, not with a traceback."""

from __future__ import annotations

import os
import sys
from types import TracebackType


class UserErrors:
    """`with UserErrors(): ...` around a command: what the user can mend is printed, and the exit status is 2.

    ValueError and OSError are the user's; everything else is ours and keeps its traceback. SONARKIT_DEBUG=1
    shows the traceback always.
    """

    def __enter__(self) -> UserErrors:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, BrokenPipeError):  # `sonarkit ... | head` closed the pipe: nothing is wrong
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
        if isinstance(error, ValueError | OSError | FloatingPointError) and not os.environ.get("SONARKIT_DEBUG"):
            sys.stdout.flush()
            print(f"sonarkit: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(130) from None
