"""A headless Chromium, driven by its own protocol; skips loudly where there is none."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from served import http
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
LOOKS = 6000


class Tab:
    """A page that is open; `complaints` are its console's errors, `asked` all addresses that it wanted."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.number = socket, 0
        self.complaints: list[str] = []
        self.asked: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; what happened before it is noted."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            told = json.loads(self.socket.recv(timeout=600))
            if told.get("id") == self.number:
                assert "error" not in told, told
                return dict(told["result"])
            self._note(told["method"], told["params"])

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"])[:500])
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"])
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.complaints.append(json.dumps(params["args"])[:500])
        elif event == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])

    def run(self, script: str) -> Any:
        """The value of an expression; promises are awaited."""
        told = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, script: str) -> None:
        """Wait for an expression to be true; that it never is shows only after minutes."""
        for _ in range(LOOKS):
            if self.run(f"Boolean({script})"):
                return
            time.sleep(0.1)
        raise AssertionError((script, self.complaints, self.run("document.body.innerText")))

    def open(self, url: str) -> None:
        """Go there, and wait until it knows what answers."""
        self.call("Page.navigate", url="about:blank")
        self.complaints, self.asked = [], []
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && document.getElementById('model')")

    def look(self, path: Path, width: int, height: int, theme: str, *, phone: bool = False) -> None:
        """Keep a picture of it."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        time.sleep(0.3)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(folder: Path, *flags: str) -> Iterator[Tab]:
    """A tab of a fresh browser."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("NO CHROMIUM: the page was not opened in a browser")
    command = [found, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               "--disable-background-networking", "--autoplay-policy=no-user-gesture-required",
               "--remote-debugging-port=0", f"--user-data-dir={folder}", *flags, "about:blank"]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = folder / "DevToolsActivePort"
        for _ in range(LOOKS):
            if port.is_file() and port.read_text().strip():
                break
            assert child.poll() is None, "Chromium did not start"
            time.sleep(0.1)
        tabs = http.get(f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json").json()
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        with connect(address, max_size=2**26) as socket:
            yield Tab(socket)
    finally:
        child.terminate()
        child.wait(30)
