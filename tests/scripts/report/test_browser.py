"""The page in a real browser: nothing asked for, nothing complained about, nothing wider than a phone."""

import contextlib
import json
import os
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TELLING = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")


class Browser:
    """One tab of headless Chromium, spoken to over pipes: its DevTools protocol, messages ended by a NUL."""

    def __init__(self, profile):
        (to_it, self.writing), (self.reading, from_it) = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        # The shell gives it the pipes as 3 and 4, where it looks for them; a plain sh knows no pipe above 9.
        line = ["bash", "-c", f'exec "$0" "$@" 3<&{to_it} 4>&{from_it}', CHROMIUM, *flags]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(line, pass_fds=(to_it, from_it), **quiet)
        os.close(to_it)
        os.close(from_it)
        self.session, self.count, self.unread, self.events = None, 0, b"", []
        tab = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method, **params):
        """What it answers to a command; events that come before are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while (told := self._told()).get("id") != self.count:
            self.events.append(told)
        return told["result"]

    def _told(self):
        while b"\0" not in self.unread:
            more = os.read(self.reading, 1 << 16)
            assert more, "the browser has gone"
            self.unread += more
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def show(self, path, width, scheme="light"):
        """Opens a file at a width in a colour scheme; events are those of this page."""
        self.events.clear()
        self("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self("Page.navigate", url=path.as_uri())
        while not self.named("Page.loadEventFired"):
            self.events.append(self._told())

    def named(self, *methods):
        """The parameters of the events of these names."""
        return [event["params"] for event in self.events if event.get("method") in methods]

    def value(self, expression):
        """What an expression is in the page."""
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def close(self):
        with contextlib.suppress(OSError):
            os.close(self.writing)
        self.process.terminate()
        self.process.wait(10)
        os.close(self.reading)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def test_a_page_in_a_browser(browser, report, sweep, write_run, tmp_path):
    evil = write_run(
        tmp_path / ("a_very_long_name_of_a_run_" * 4 + "<script>alert(1)<"),
        texts=["<img src=x onerror=alert(1)>", "The <b>Eagle</b> is a pub.", "An eagle " * 30, "wordwithoutend" * 30],
        ways=("beam", "nucleus"),
        learning_rate=0.5,
    )
    path = report(sweep, evil).folder / "report.html"
    for width, scheme in ((1280, "light"), (390, "dark"), (390, "light")):
        browser.show(path, width, scheme)
        assert [each["request"]["url"] for each in browser.named("Network.requestWillBeSent")] == [path.as_uri()]
        assert browser.named(*TELLING) == []
        assert browser.value("document.documentElement.scrollWidth <= innerWidth"), (width, scheme)
        assert browser.value("[...document.images].length + document.scripts.length") == 1
        background = browser.value("getComputedStyle(document.body).backgroundColor")
        assert sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(","))) > 700 or scheme == "dark"
        words = "[...document.querySelectorAll('svg.chart text')].map(e => e.getBoundingClientRect().right)"
        assert browser.value(f"Math.max(...{words}) <= innerWidth")

    def search(wanted):
        browser.value(f"box.value = {json.dumps(wanted)}; box.dispatchEvent(new Event('input')); 0")
        shown = browser.value("[...document.querySelectorAll('.texts tbody tr')].filter(e => !e.hidden).length")
        return shown, browser.value("told.textContent"), browser.value("CSS.highlights.get('found')?.size")

    assert browser.value("box.closest('.search').hidden") is False
    assert search("EAGLE") == (2, "2 of 6 rows", 62)
    assert search("<b>") == (1, "1 of 6 rows", 2)
    assert search("nothing of the kind") == (0, "0 of 6 rows", 0)
    assert search("") == (6, "", 0)


def test_the_policy_stops_what_escaping_would_have_let_through(browser, report, sweep):
    made = report(sweep)
    path = made.folder / "broken.html"
    image = "<img src='http://127.0.0.1:9/x' onerror='window.ran = 2'>"
    broken = f"<script>window.ran = 1</script>{image}<b id='there'></b>"
    path.write_text(made.html.replace("<main>", f"<main>{broken}"))
    browser.show(path, 1280)
    assert browser.value("document.querySelector('#there') !== null && window.ran === undefined")
    asked = {each["request"]["url"] for each in browser.named("Network.requestWillBeSent")}
    failed = {each.get("blockedReason") for each in browser.named("Network.loadingFailed")}
    assert asked - {path.as_uri()} == set() or failed == {"csp"}
    assert browser.named("Log.entryAdded")
