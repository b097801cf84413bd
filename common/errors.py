"""Failures as one line on stderr: what happened, why, and what to do about it."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """A failure that a user can act on.

    exit_code is 2 for a request that cannot be met (found before any training) and 1 for
    something that broke on the way.
    """

    def __init__(self, what: str, why: str, what_to_do: str, exit_code: int = 2):
        super().__init__("; ".join(" ".join(part.split()) for part in (what, why, what_to_do)))
        self.exit_code = exit_code


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; everything up to the last finished epoch is on disk."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


def script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main`; print a failure as one line, or as a traceback with `--debug`."""
    debug = "--debug" in sys.argv[1:]
    try:
        sys.exit(main() or 0)
    except Interrupted as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): say nothing more to it, at exit neither.
        sys.stdout = sys.stderr
        sys.exit(141)
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"error: unexpected failure; {text}; add --debug for the traceback", file=sys.stderr)
        sys.exit(1)
