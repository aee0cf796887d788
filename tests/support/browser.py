"""A real browser without a window, told what to do over a pipe: the only judge of what a page does."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

#: What Chromium is called on different systems.
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)
#: Seconds that one answer may take.
_PATIENCE = 60.0


def find_browser() -> str | None:
    """The program; None where there is none."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


needs_browser = pytest.mark.skipif(find_browser() is None, reason="needs Chromium (on Debian: the package chromium)")


class Browser:
    """One page of a Chromium; made by `browser()`."""

    def __init__(self, to: int, back: int) -> None:
        self._to = to
        self._back = back
        self._number = 0
        self._received = b""
        self._target = ""
        #: URLs that any page asked for, and what the console said.
        self.requests: list[str] = []
        self.console: list[str] = []

    def attach(self) -> None:
        """Make the page that all else is about."""
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._target = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._send(f"{domain}.enable")

    def open(self, page: Path, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        """Load a file in a window of that size, and wait until it has loaded."""
        self.resize(width, height)
        scheme = "dark" if dark else "light"
        self._send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._send("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + _PATIENCE
        while self.evaluate("document.readyState") != "complete" and time.monotonic() < deadline:
            time.sleep(0.01)  # a poll, as the old page may answer too

    def resize(self, width: int, height: int) -> None:
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        said = self._send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise AssertionError(json.dumps(said["exceptionDetails"])[:2000])
        return said["result"].get("value")

    def frames(self, count: int = 2) -> None:
        """Wait until the page has been drawn that often."""
        chain = "requestAnimationFrame(() => " * count + "done()" + ")" * count
        self.evaluate(f"new Promise(done => {chain})")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """`mouseMoved`, `mousePressed`, `mouseReleased` or `mouseWheel` at a place of the window."""
        self._send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        self.mouse("mouseMoved", x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def screenshot(self, file: Path, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        said = self._send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(said["data"]))

    def pdf(self, file: Path) -> None:
        """The page as it would be printed."""
        file.write_bytes(base64.b64decode(self._send("Page.printToPDF", printBackground=True)["data"]))

    def without_javascript(self) -> None:
        """Pages opened from now on run no scripts of their own."""
        self._send("Emulation.setScriptExecutionDisabled", value=True)

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._target:
            message["sessionId"] = self._target
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        about = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif event.get("method") == "Log.entryAdded":
            self.console.append(about["entry"]["text"])
        elif event.get("method") == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(each.get("value", each)) for each in about["args"]))
        elif event.get("method") == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description", details["text"]))
        elif event.get("method") == "Page.javascriptDialogOpening":
            self.console.append(f"dialog: {about['message']}")

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._back], [], [], _PATIENCE)
            assert ready, "the browser does not answer"
            data = os.read(self._back, 1 << 20)
            assert data, "the browser has ended"
            self._received += data
        message, _, self._received = self._received.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser of its own with nothing remembered; ended with all its processes."""
    to, back = os.pipe(), os.pipe()
    with TemporaryDirectory(prefix="asyncflow-browser-", ignore_cleanup_errors=True) as folder:
        process = _start(folder, to[0], back[1])
        page = Browser(to[1], back[0])
        try:
            page.attach()
            yield page
        finally:
            # Its processes are a group of their own.
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os.close(to[1])
            os.close(back[0])


def _start(folder: str, theirs_in: int, theirs_out: int) -> int:
    """Chromium, which reads what it is told from descriptor 3 and answers on 4; its process id."""
    program = find_browser()
    assert program is not None
    # Out of the way of 3 and 4.
    high = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in (theirs_in, theirs_out)]
    nothing = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    pipes = [(os.POSIX_SPAWN_DUP2, high[0], 3), (os.POSIX_SPAWN_DUP2, high[1], 4)]
    command = [program, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
    process = os.posix_spawn(program, command, os.environ, file_actions=[*nothing, *pipes], setpgroup=0)
    for each in (theirs_in, theirs_out, *high):
        os.close(each)
    return process
