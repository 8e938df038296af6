"""Chromium without a window, driven through a pipe: pages opened from disk, a real mouse, and what the console said."""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60  # seconds until an answer is missed
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--hide-scrollbars", "--window-size=1400,1000"]


def chromium() -> str:
    """Where the browser is. Without one the test is skipped, or fails if JAXFORMER_REQUIRE_BROWSER is 1."""
    path = shutil.which("chromium")
    if path is None and os.environ.get("JAXFORMER_REQUIRE_BROWSER") == "1":
        pytest.fail("JAXFORMER_REQUIRE_BROWSER=1, but there is no chromium: apt-get install chromium")
    return path or pytest.skip("there is no chromium: apt-get install chromium")


class Page:
    """A tab of the browser.

    problems: what the console said and what went wrong, since the page was opened. requests: the addresses asked for.
    """

    def __init__(self, reading: int, writing: int):
        self.reading, self.writing = reading, writing
        self.rest = b""
        self.counter = itertools.count(1)
        self.session: str | None = None
        self.problems: list[str] = []
        self.requests: list[str] = []

    def ask(self, method: str, **settings: Any) -> dict[str, Any]:
        """The answer to a command of the DevTools protocol."""
        number = next(self.counter)
        command = {"id": number, "method": method, "params": settings}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.writing, json.dumps(command).encode() + b"\0")
        while True:
            message = self.receive()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def receive(self) -> dict[str, Any]:
        """The next message of the browser; what it tells unasked is noted."""
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.reading], [], [], PATIENCE)
            assert ready, "the browser does not answer"
            part = os.read(self.reading, 1 << 20)
            assert part, "the browser is gone"
            self.rest += part
        line, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(line)
        match message.get("method"):
            case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded":
                self.problems.append(json.dumps(message["params"]))
            case "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
        return message

    def open(self, path: Path, address: str = "", *, drawn: str = "body *") -> None:
        """Open a file as if for the first time, and wait until the CSS selector `drawn` finds something."""
        self.ask("Page.navigate", url="about:blank")
        self.problems.clear()
        self.requests.clear()
        self.ask("Page.navigate", url=f"{path.as_uri()}{address}")
        self.until(f"document.readyState == 'complete' && document.querySelector({json.dumps(drawn)})")

    def until(self, script: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.run(f"Boolean({script})"):
            assert not self.problems, self.problems
            assert time.monotonic() < deadline, f"this never came true: {script}"

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that a CSS selector finds."""
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((node) => node.textContent)")

    def point(self, selector: str, *, at: tuple[float, float] | None = None, click: bool = False) -> None:
        """Move the mouse to the middle of an element, or so many pixels from its corner; press and let go."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{found}.scrollIntoView({{ block: 'center' }})")
        box = self.run(f"(({{ x, y, width, height }}) => [x, y, width, height])({found}.getBoundingClientRect())")
        inside = at or (box[2] / 2, box[3] / 2)
        place = {"x": box[0] + inside[0], "y": box[1] + inside[1]}
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", **place)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.ask("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def press(self, key: str) -> None:
        """Press a key, such as "ArrowDown"."""
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key)

    def screenshot(self) -> bytes:
        """What is on the screen, as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])


@contextmanager
def browse(profile: Path) -> Iterator[Page]:
    """A browser of its own with one tab, that keeps its files in the folder `profile`."""
    path = chromium()
    (command_end, our_writing), (our_reading, answer_end) = os.pipe(), os.pipe()
    # The browser reads commands from file 3 and writes answers to file 4.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (command_end, answer_end)]
    script = f'exec "$0" "$@" 3<&{ends[0]} 4>&{ends[1]}'
    command = ["bash", "-c", script, path, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    process = subprocess.Popen(command, pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for end in (command_end, answer_end, *ends):
        os.close(end)
    try:
        page = Page(our_reading, our_writing)
        target = page.ask("Target.createTarget", url="about:blank")["targetId"]
        page.session = page.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.ask(f"{domain}.enable")
        yield page
    finally:
        os.close(our_writing)  # the browser ends with the pipe
        os.close(our_reading)
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
