"""What Ctrl-C does where no step is being taken: the process ends at once."""

import os
import sys
from typing import Any


def leave(number: int, frame: Any) -> None:
    """Says so, and ends the process; a handler of signals.

    An exception would be lost where a library catches all, as some do on import.
    """
    del frame
    # A progress line may have hidden the cursor, and is not finished.
    before = "\x1b[?25h\n" if sys.stderr.isatty() else ""
    os.write(2, f"{before}adaprec: stopped; what is on disk is kept.\n".encode())
    os._exit(128 + number)
