"""A headless Chromium that tests steer through chromedriver's HTTP interface.

W3C WebDriver, https://www.w3.org/TR/webdriver2/.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


class Page:
    """A tab.

    Args:
        session: Address of the WebDriver session.
    """

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, path: Path) -> None:
        """Show a local file."""
        _send(f"{self._session}/url", {"url": path.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a function body in JavaScript returns."""
        return _send(f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *arguments: Any, seconds: float = 20) -> Any:
        """Return what a function body returns as soon as that is true."""
        return _until(lambda: self.run(script, *arguments), seconds, script)

    def click(self, text: str, within: str = "nav") -> None:
        """Click the innermost element that has exactly this text, within what a selector finds."""
        self.wait(
            "const found = [...document.querySelectorAll(arguments[1])]"
            ".filter(e => e.innerText?.trim() === arguments[0]);"
            "found.at(-1)?.click(); return found.length;",
            text,
            f"{within} *",
        )

    def errors(self) -> list[str]:
        """Return what the page complained of on its console."""
        entries = _send(f"{self._session}/se/log", {"type": "browser"})
        return [e["message"] for e in entries if e["level"] == "SEVERE"]

    def screenshot(self, path: Path) -> None:
        """Save what the window shows as PNG."""
        path.write_bytes(base64.b64decode(_send(f"{self._session}/screenshot")))


@contextmanager
def page(width: int = 1280, height: int = 800) -> Iterator[Page]:
    """Give a page of a browser that is ended afterwards.

    Args:
        width, height: Of the window, in pixels.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        [str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        server = f"http://127.0.0.1:{port}"
        _until(lambda: _ready(server), 20, "chromedriver")
        options = {"binary": BROWSER, "args": [*_OPTIONS, f"--window-size={width},{height}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = _send(f"{server}/session", {"capabilities": {"alwaysMatch": wanted}})
        session = f"{server}/session/{made['sessionId']}"
        try:
            yield Page(session)
        finally:
            _send(session, method="DELETE")
    finally:
        driver.terminate()
        driver.wait()


def _ready(server: str) -> bool:
    try:
        return _send(f"{server}/status")["ready"]
    except urllib.error.URLError:
        return False


def _send(address: str, body: Any = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(json.load(error)["value"]["message"]) from None


def _until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.05)
    return value
