"""Runs a program that ends when standard input does: when whoever started this one is gone.

It is run by its path, and needs nothing but Python.
"""

from __future__ import annotations

import subprocess
import sys
import threading


def leash() -> int:
    """Run the command line that is given, and return its exit status."""
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def hold() -> None:
        sys.stdin.buffer.read()
        process.kill()

    threading.Thread(target=hold, daemon=True).start()
    return process.wait()


if __name__ == "__main__":
    sys.exit(leash())
