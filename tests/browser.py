"""A real browser without a window, driven over its own pipe (Chrome DevTools Protocol); needs no other package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE_SECONDS = 30

# The browser reads commands from file descriptor 3 and answers on 4.
_START = """
import fcntl, os, sys
source, sink = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1:3])
os.dup2(source, 3), os.dup2(sink, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page of a running Chromium."""

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink = os.fdopen(source, "rb", buffering=0), os.fdopen(sink, "wb", buffering=0)
        self._number, self._session, self._rest = 0, "", b""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Page.enable")

    def ask(self, method: str, **values: Any) -> Any:
        """Send one command and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": values}
        if self._session:
            message["sessionId"] = self._session
        self._sink.write(json.dumps(message).encode() + b"\0")
        while True:
            said = json.loads(self._next())
            if said.get("id") == self._number:
                assert "error" not in said, said["error"]
                return said["result"]

    def _next(self) -> bytes:
        while b"\0" not in self._rest:
            part = self._source.read(1 << 16)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return message

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.run(script):
            assert time.monotonic() < end, f"not true: {script}"
            time.sleep(0.02)

    def open(self, url: str, *, width: int = 1200, dark: bool = False) -> None:
        """Go to a page and wait until it is complete."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setScrollbarsHidden", hidden=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=url)
        self.until(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press one key."""
        about = {"key": key.upper() if shift and len(key) == 1 else key, "modifiers": 8 if shift else 0}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **about)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **about)

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Chromium with an empty profile; the test is skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), "")
    if not found:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    down, up = os.pipe(), os.pipe()
    flags = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
    flags += ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    process = subprocess.Popen(
        [sys.executable, "-c", _START, str(down[0]), str(up[1]), found, *flags, "about:blank"],
        pass_fds=(down[0], up[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(down[0])
    os.close(up[1])
    try:
        yield Browser(up[0], down[1])
    finally:
        process.terminate()
        process.wait(10)
