"""Headless Chromium for tests of pages: keys are pressed, files are saved, screenshots are taken.

It is driven by its DevTools protocol over two pipes, so nothing listens and no driver is needed. A test that uses it is
skipped where Chromium is not installed.
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed")
NAMED_KEYS = {"Enter": 13, "Escape": 27, "Tab": 9}
CTRL = 2


class Browser:
    """A page in headless Chromium."""

    def __init__(self, to_browser: int, from_browser: int, downloads: Path) -> None:
        self.to_browser, self.from_browser, self.downloads = to_browser, from_browser, downloads
        self.number, self.buffer, self.session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.from_browser], [], [], PATIENCE)
            assert ready, "Chromium does not answer"
            part = os.read(self.from_browser, 1 << 16)
            assert part, "Chromium has ended"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path) -> None:
        self.call("Page.navigate", url=page.absolute().as_uri())
        self.wait_until("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_until(self, expression: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.value(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.02)

    def press(self, keys: str) -> None:
        """Presses each character."""
        for key in keys:
            self.press_key(key)

    def press_key(self, key: str, *, ctrl: bool = False) -> None:
        code = NAMED_KEYS.get(key, ord(key.upper()[0]))
        event: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code, "modifiers": CTRL if ctrl else 0}
        text = {} if len(key) > 1 or ctrl else {"text": key}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def insert(self, text: str) -> None:
        """Types a text into the element with the focus, at its cursor."""
        self.call("Input.insertText", text=text)

    def saved(self, name: str) -> Path:
        """The file that the page has saved under this name."""
        path, deadline = self.downloads / name, time.monotonic() + PATIENCE
        while not path.exists():
            assert time.monotonic() < deadline, sorted(self.downloads.iterdir())
            time.sleep(0.02)
        return path

    def picture(self, file: Path, *, width: int, height: int, dark: bool = False) -> None:
        """A screenshot at this width, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def problems(self) -> list[str]:
        """Errors, blocked content and requests beyond the page itself, since it was opened."""
        self.value("1")  # events up to now have been read
        found = [
            json.dumps(event["params"])
            for event in self.events
            if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")
        ]
        requests = [
            event["params"]["request"]["url"] for event in self.events if event["method"].endswith("WillBeSent")
        ]
        return found + [url for url in requests if not url.startswith(("file:", "blob:"))]


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser whose profile and downloads are in the folder."""
    assert PROGRAM is not None
    downloads = folder / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    for_browser, to_browser = os.pipe()
    from_browser, of_browser = os.pipe()
    # Chromium reads its descriptor 3 and writes 4; the shell puts the pipes there.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (for_browser, of_browser)]
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
    options += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={folder / 'profile'}",
    ]
    script = f'exec "$0" "$@" 3<&{ends[0]} 4>&{ends[1]}'
    process = subprocess.Popen(
        ["bash", "-c", script, PROGRAM, *options, "about:blank"],
        pass_fds=ends,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (for_browser, of_browser, *ends):
        os.close(end)
    try:
        yield Browser(to_browser, from_browser, downloads)
    finally:
        process.terminate()
        process.wait(PATIENCE)
        os.close(to_browser)
        os.close(from_browser)
