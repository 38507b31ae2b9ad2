"""A page in headless Chromium, with real clicks and keys, by the W3C WebDriver protocol of chromedriver."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # by which the protocol names an element
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


class Page:
    """A page that is open."""

    def __init__(self, session: str) -> None:
        self._session = session

    def find(self, selector: str) -> list[str]:
        """The elements of a CSS selector."""
        found = _ask("POST", f"{self._session}/elements", {"using": "css selector", "value": selector})
        return [one[ELEMENT] for one in found]

    def click(self, selector: str, number: int = 0) -> None:
        """Click on an element as a hand would: scrolled to, and refused where another lies over it."""
        _ask("POST", f"{self._session}/element/{self.find(selector)[number]}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into a field."""
        _ask("POST", f"{self._session}/element/{self.find(selector)[0]}/value", {"text": text})

    def clear(self, selector: str) -> None:
        """Empty a field."""
        _ask("POST", f"{self._session}/element/{self.find(selector)[0]}/clear", {})

    def run(self, script: str) -> Any:
        """What a script returns."""
        return _ask("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def texts(self, selector: str) -> list[str]:
        """The text of every element of a CSS selector, as it is in the page."""
        return self.run(f"return [...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")

    def as_printed(self) -> None:
        """Lay the page out as for paper."""
        wanted = {"cmd": "Emulation.setEmulatedMedia", "params": {"media": "print"}}
        _ask("POST", f"{self._session}/goog/cdp/execute", wanted)

    def errors(self) -> list[str]:
        """What the page complained of."""
        return [one["message"] for one in _ask("POST", f"{self._session}/se/log", {"type": "browser"})]


@contextmanager
def opened(path: Path, width: int = 1200) -> Iterator[Page]:
    """Open a file, on a screen of so many pixels."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs headless Chromium and its driver: apt-get install chromium chromium-driver")
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen([driver, "--port=0"], stdout=log) as process:
        try:
            base = f"http://127.0.0.1:{_port(log, process)}/session"
            screen = {"deviceMetrics": {"width": width, "height": 900, "pixelRatio": 1, "touch": False}}
            options = {"binary": chromium, "args": ARGUMENTS, "mobileEmulation": screen}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            session = _ask("POST", base, {"capabilities": {"alwaysMatch": wanted}})
            place = f"{base}/{session['sessionId']}"
            _ask("POST", f"{place}/url", {"url": path.as_uri()})
            yield Page(place)
            _ask("DELETE", place)
        finally:
            process.terminate()


def _port(log: Any, process: subprocess.Popen[bytes]) -> str:
    """The port that the driver chose, once it says so."""
    for _ in range(600):
        log.seek(0)
        said = log.read()
        if "started successfully on port" in said:
            return said.split("started successfully on port")[1].split(".")[0].strip()
        assert process.poll() is None, said
        time.sleep(0.05)
    raise AssertionError(said)


def _ask(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from None
