"""An error of the system, or one that is no user's mistake, as one line; tracebacks are shown with -v only."""

import contextlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable

from data_schemas.files import space_hint
from data_schemas.text import escape_what_the_terminal_lacks, printable

TRACEBACKS = "ALIGNLOOP_TRACEBACKS"  # set in the environment of a command's program where -v was given


def report_unexpected(error: BaseException, *, tracebacks: bool) -> None:
    """Prints one line on stderr, and before it the traceback where that is wanted; else it is in a file."""
    if tracebacks:
        traceback.print_exception(error)
    text = printable(" ".join(f"{type(error).__name__}: {error}".split()))[:500]
    place = "; -v shows its traceback"
    with contextlib.suppress(OSError):
        descriptor, name = tempfile.mkstemp(prefix="alignloop-error-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
        place = f"; its traceback is in {name}"
    print(f"error: unexpected {text}{place}; this is a bug: please report it", file=sys.stderr)


def report_os_error(error: OSError) -> None:
    """Prints an error of the system, such as that of a folder without write permission, in one line on stderr.

    On a full disk the line has the remedy.
    """
    hint = space_hint(error)
    text = f"{error.filename}: {error.strerror}" if error.filename is not None and error.strerror else str(error)
    print(f"error: {printable(text)}{f'; {hint}' if hint else ''}", file=sys.stderr)


def guarded(main: Callable[[], int]) -> int:
    """The exit code of a program; an error that it does not report itself is one line, and 1.

    SIGTERM ends it as an exit does, so that its temporary files are deleted and its own programs end.
    """
    escape_what_the_terminal_lacks()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return main()
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if os.environ.get(TRACEBACKS):
            traceback.print_exception(error)
        report_os_error(error)
        return 1
    except Exception as error:
        report_unexpected(error, tracebacks=bool(os.environ.get(TRACEBACKS)))
        return 1
