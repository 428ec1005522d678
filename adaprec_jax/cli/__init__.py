"""The command `adaprec`: reads arguments, checks them, hands them on, prints.

What is wrong with the input is said before JAX is imported: one sentence per fault on
the standard error, and exit code 2. Exit code 3 means that a run failed,
130 that the user stopped it.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from adaprec_jax.runs.errors import InputError


def main() -> None:
    """Runs the command that the arguments of the process ask for."""
    before = signal.signal(signal.SIGINT, _leave)
    sys.path.append(str(Path.cwd()))  # For import targets; last, to shadow nothing.
    from adaprec_jax.cli.commands import app  # Half a second, in which Ctrl-C counts.

    try:
        app(prog_name="adaprec")
    except InputError as error:
        for fault in error.args:
            sys.stderr.write(f"adaprec: {fault}\n")
        sys.exit(2)
    except (OSError, UnicodeEncodeError) as error:  # A name too long, a full pipe.
        sys.stderr.write(f"adaprec: {error}.\n")
        sys.exit(2)
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(number: int, frame: Any) -> None:
    """Ends the process at once; while steps are taken, the run has its own handler.

    An exception would be lost where a library catches all, as some do on import.
    """
    del number, frame
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    os.write(2, f"{show_cursor}adaprec: stopped; what is on disk is kept.\n".encode())
    os._exit(130)
