"""A headless Chromium, driven through the REST protocol of its chromedriver."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--force-device-scale-factor=1", "--hide-scrollbars"),
)
KEYS = {"right": "\ue014", "left": "\ue012", "end": "\ue010", "home": "\ue011", "down": "\ue00f"}


class Browser:
    """A window of the browser."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, method: str, path: str, content: object = None) -> Any:
        body = None if method == "GET" else json.dumps(content or {}).encode()
        request = urllib.request.Request(self.address + path, body, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def devtools(self, name: str, **parameters: object) -> Any:
        return self.ask("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, page: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        wishes = {"prefers-color-scheme": "dark" if dark else "light"}
        wishes["prefers-reduced-motion"] = "reduce"  # clicks miss what is still moving
        features = [{"name": name, "value": value} for name, value in wishes.items()]
        self.devtools("Emulation.setEmulatedMedia", features=features)
        self.ask("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> Any:
        return self.ask("POST", "/execute/sync", {"script": script, "args": []})

    def until(self, script: str) -> Any:
        """Waits until a script gives something, and returns it."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if found := self.run(script):
                return found
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}")

    def press(self, selector: str, *keys: str) -> None:
        """Types keys into an element."""
        element = self.ask("POST", "/element", {"using": "css selector", "value": selector})
        text = "".join(KEYS[key] for key in keys)
        self.ask("POST", f"/element/{element[_ELEMENT]}/value", {"text": text})

    def click(self, selector: str) -> None:
        element = self.ask("POST", "/element", {"using": "css selector", "value": selector})
        self.ask("POST", f"/element/{element[_ELEMENT]}/click")

    def complaints(self) -> list[str]:
        """What the console says since the last call: errors and warnings."""
        found = self.ask("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in found]

    def picture(self, *, whole: bool = False) -> bytes:
        """A PNG of the window, or of the whole page."""
        found = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(found["data"])

    def printed(self) -> bytes:
        """The page as PDF."""
        return base64.b64decode(self.ask("POST", "/print", {"background": False}))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Starts a browser with a profile in a folder; skips where none is installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Chromium and chromedriver (Debian: chromium, chromium-driver)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "chromedriver.log").open("w")
    process = subprocess.Popen([driver, f"--port={port}"], stdout=log, stderr=log)
    root = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{root}/status")
        window = Browser(root)
        options = {
            "binary": chromium,
            "args": [*_QUIET, f"--user-data-dir={folder / 'profile'}"],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = window.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        window.address = f"{root}/session/{made['sessionId']}"
        yield window
        window.ask("DELETE", "")
    finally:
        process.terminate()
        process.wait(timeout=20)
        log.close()


def _wait(address: str) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if json.load(answer)["value"]["ready"]:
                    return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("chromedriver does not answer")
