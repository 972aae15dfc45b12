"""A stand-in for llama-server: what a job asks of it, answered by a formula instead of a model.

As the real one it gives log-probabilities of the tokens that it generates, and none of a prompt's.
Run as a program it takes the real one's options, and notes its key's place in the environment.
"""

from __future__ import annotations

import http.server
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VOCABULARY = 39


def logprobs(prompt: Sequence[int]) -> list[float]:
    """Return the log-probabilities of all tokens after a prompt."""
    logits = [math.sin(1 + sum(prompt[-3:]) * (token + 1)) for token in range(VOCABULARY)]
    total = math.log(math.fsum(map(math.exp, logits)))
    return [logit - total for logit in logits]


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer({"status": "ok", "build_info": "stand-in"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {os.environ['LLAMA_API_KEY']}":
            self.send_error(401)
        elif "echo" in asked:
            self.send_error(400)
        else:
            self._answer(self._generated(asked))

    def _generated(self, asked: dict[str, Any]) -> dict[str, Any]:
        bias, tokens, rows = dict(asked.get("logit_bias", [])), list(asked["prompt"]), []
        for _ in range(asked["n_predict"]):
            found = logprobs(tokens)
            best = max(range(VOCABULARY), key=found.__getitem__)
            token = max(range(VOCABULARY), key=lambda t: found[t] + bias.get(t, 0))
            top = [{"id": best, "logprob": found[best]}]
            rows.append({"id": token, "logprob": found[token], "top_logprobs": top})
            tokens.append(token)
        words = "".join(chr(97 + row["id"] % 26) for row in rows)
        return {"content": words, "completion_probabilities": rows}

    def _answer(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def install(folder: Path) -> Path:
    """Write the stand-in as a program into a folder of llama.cpp, and return its path."""
    program = folder / "build" / "bin" / "llama-server"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} "$@"\n')
    program.chmod(0o755)
    return program


def main() -> None:
    """Serve until it is ended."""
    words = sys.argv[1:]
    if not Path(words[words.index("-m") + 1]).read_bytes().startswith(b"GGUF"):
        sys.exit("error: failed to load model \x1b[31m")
    port = int(words[words.index("--port") + 1])
    http.server.ThreadingHTTPServer(
        (words[words.index("--host") + 1], port), _Handler
    ).serve_forever()


if __name__ == "__main__":
    main()
