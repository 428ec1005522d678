"""What Ctrl-C does where no step is being taken: the process ends at once."""

import os
import sys
from typing import Any


def cursor() -> str:
    """Returns what shows the cursor again, which a progress line may have hidden."""
    return "\x1b[?25h" if sys.stderr.isatty() else ""


def leave(number: int, frame: Any) -> None:
    """Says so, and ends the process; a handler of signals.

    An exception would be lost where a library catches all, as some do on import.
    """
    del frame
    before = cursor()
    line = f"{before}\n" if before else ""  # A progress line is not finished.
    os.write(2, f"{line}adaprec: stopped; what is on disk is kept.\n".encode())
    os._exit(128 + number)
