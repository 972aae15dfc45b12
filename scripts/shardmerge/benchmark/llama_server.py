"""A server of llama.cpp for one job: on this machine alone, with a key, ended with the job."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import Any

from shardmerge.base.errors import UserError
from shardmerge.base.printable import printable

#: Seconds that a model may take to load, and an answer.
_LOADING, _ANSWER = 3600.0, 3600.0
#: Lines of the server's output that are told when it fails.
_LAST = 5
#: What ends the server with this process.
_LEASH = str(Path(__file__).with_name("leash.py"))
#: What the server is not told.
_SECRET = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "LLAMA_API_KEY")


@dataclass(frozen=True)
class Server:
    """A running server.

    Args:
        address: Of its root.
        key: That it asks for, so that nobody else on the machine uses it.
    """

    address: str
    key: str = field(repr=False)

    def ask(self, path: str, value: Mapping[str, Any] | None = None) -> Any:
        """Return the server's answer, parsed.

        Args:
            path: Such as ``completion``.
            value: The request, None for one without a body.

        Raises:
            UserError: If it refuses, or does not answer any more.
        """
        data = None if value is None else json.dumps(value).encode()
        fields = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(f"{self.address}/{path}", data, fields)
        try:
            with _DIRECT.open(request, timeout=_ANSWER) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            told = printable(error.read(2000).decode(errors="replace"))
            raise UserError(f"llama-server answers {error.code}: {told}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"llama-server does not answer any more ({error})") from None

    @property
    def is_ready(self) -> bool:
        """Whether it has loaded its model."""
        with contextlib.suppress(OSError), _DIRECT.open(f"{self.address}/health", timeout=5) as a:
            return bool(a.status == 200)
        return False


#: No proxy stands between this machine and itself.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def served(program: str, file: Path, words: Sequence[str]) -> Iterator[Server]:
    """Give a server of a GGUF file; it ends with the context, and if this process is killed.

    Args:
        program: Path of ``llama-server``.
        file: The file; of a split one the first.
        words: Further options.

    Raises:
        UserError: If it does not start.
    """
    with tempfile.TemporaryFile() as output:
        server, process = _start(program, file, words, output.fileno())
        try:
            _wait(server, process, output)
            yield server
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def _start(
    program: str, file: Path, words: Sequence[str], output: int
) -> tuple[Server, subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = secrets.token_hex(16)
    environment = {k: v for k, v in os.environ.items() if k not in _SECRET}
    place = ["--host", "127.0.0.1", "--port", str(port)]
    if which(program) is None:
        raise UserError("is no program that can be started", program)
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", _LEASH, program, "-m", str(file.resolve()), *place, *words],
            env=environment | {"LLAMA_API_KEY": key},  # no command line shows it
            stdin=subprocess.PIPE,  # ends with this process, however that ends
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise UserError(f"cannot be started ({error.strerror})", program) from None
    return Server(f"http://127.0.0.1:{port}", key), process


def _wait(server: Server, process: subprocess.Popen[bytes], output: Any) -> None:
    end = time.monotonic() + _LOADING
    while not server.is_ready:
        if process.poll() is not None or time.monotonic() > end:
            output.seek(0)
            lines = [line for line in output.read().decode(errors="replace").splitlines() if line]
            told = "".join(f"\n  {printable(line)}" for line in lines[-_LAST:])
            raise UserError(f"llama-server does not start; its last lines:{told or ' none'}")
        time.sleep(0.1)
