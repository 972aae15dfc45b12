"""What every command line shares: errors as sentences, a thread limit."""

from __future__ import annotations

import sys
from collections.abc import Callable

from shardmerge.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Run a command line; a UserError becomes one message on stderr and exit status 1."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
