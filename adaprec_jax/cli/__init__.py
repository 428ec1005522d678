"""The command `adaprec`: reads arguments, checks them, hands them on, prints.

What is wrong with the input is said before JAX is imported: one sentence per fault on
the standard error, and exit code 2. Exit code 3 means that a run failed,
130 that the user stopped it.
"""

import signal
import sys
from pathlib import Path

from adaprec_jax.runs.errors import InputError
from adaprec_jax.runs.leaving import leave


def main() -> None:
    """Runs the command that the arguments of the process ask for."""
    before = signal.signal(signal.SIGINT, leave)
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
