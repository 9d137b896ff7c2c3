"""How every script runs: what a user can mend ends in one line."""

import sys
from pathlib import Path

from .errors import UserError


def run_script(main) -> None:
    """Run `main(argv)`; a `UserError` becomes one line on stderr and an exit status, and with --debug a traceback."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        # A worker of a data loader wraps the message in its traceback; its last line is what was raised.
        lines = str(error).strip().splitlines()
        if lines:
            line = lines[-1].removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")
            print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted before there was anything to save", file=sys.stderr)
        sys.exit(130)
