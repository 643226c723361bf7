"""A real browser for tests: Chromium, driven by its DevTools protocol through a pair of pipes."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import pytest

QUIET = ("background-networking", "sync", "component-update", "quic", "gpu", "dev-shm-usage")
FLAGS = ("--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", *(f"--disable-{name}" for name in QUIET))
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "ArrowLeft": (37, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""),
        "ArrowDown": (40, ""), "Home": (36, ""), "End": (35, ""), "Tab": (9, "")}  # fmt: skip


def executable() -> str:
    """Returns the path of a browser. Without one the test is skipped, or fails if COMROPE_REQUIRE_BROWSER is set."""
    for name in ("chromium", "google-chrome", "chromium-browser"):
        if found := shutil.which(name):
            return found
    if os.environ.get("COMROPE_REQUIRE_BROWSER"):
        pytest.fail("COMROPE_REQUIRE_BROWSER is set, but there is no chromium, google-chrome or chromium-browser.")
    pytest.skip("no chromium, google-chrome or chromium-browser on this machine")


class Browser:
    """A headless browser with one tab. It records errors and every request except for the page's own file."""

    def __init__(self, profile: Path):
        to_read, ours = os.pipe()  # the browser reads commands from descriptor 3 and writes answers to 4
        answers, to_write = os.pipe()
        command = [executable(), *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        script = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._commands, self._answers = os.fdopen(ours, "wb", buffering=0), answers
        self._buffer, self._last, self._session = b"", 0, None
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.getTargets")["targetInfos"]
        page = next(each["targetId"] for each in target if each["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._session = None
        self.send("Browser.close")
        self._commands.close()
        os.close(self._answers)
        self._process.wait(30)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol, and returns its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._answers, 2**16)
            assert chunk, "the browser ended"
            self._buffer += chunk
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(raw)
        event, given = message.get("method"), message.get("params", {})
        if event == "Runtime.exceptionThrown":
            self.errors.append(given["exceptionDetails"].get("exception", {}).get("description", str(given)))
        elif event == "Runtime.consoleAPICalled":
            self.errors.append(f"console.{given['type']}: {[each.get('value') for each in given['args']]}")
        elif event == "Log.entryAdded":
            self.errors.append(f"{given['entry']['level']}: {given['entry']['text']}")
        elif event == "Network.requestWillBeSent":
            url = given["request"]["url"]
            if not url.startswith("data:") and given.get("type") != "Document":
                self.requests.append(url)
        return message

    def open(
        self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False
    ) -> None:
        """Opens a page, and waits until its script has run."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)
        self.dark(dark)
        self.send("Page.navigate", url=page.absolute().as_uri())
        self.wait("document.documentElement?.dataset.ready === 'true'")

    def dark(self, dark: bool) -> None:
        """Asks for a dark or a light page."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.value(condition):
            assert time.monotonic() < end, (condition, self.errors)
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """Returns the text of an element."""
        return self.value(f"document.querySelector({json.dumps(selector)}).textContent")

    def click(self, selector: str, at: tuple[float, float] = (0.5, 0.5)) -> None:
        """Clicks an element with the mouse, at a place in it (right, down) from 0 to 1."""
        found = f"document.querySelector({json.dumps(selector)})"
        box = self.value(
            f"(() => {{ {found}.scrollIntoView({{block: 'center'}}); const b = {found}.getBoundingClientRect(); "
            "return [b.x, b.y, b.width, b.height]; })()"
        )
        place = {"x": box[0] + at[0] * box[2], "y": box[1] + at[1] * box[3], "button": "left", "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **(place | {"button": "none"}))
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, **place)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Presses a key."""
        code, text = KEYS[key]
        given = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.send("Input.dispatchKeyEvent", type="keyDown", **given, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **given)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Writes a picture of the page as a PNG file."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))
