"""The page at /: small, self-contained, under a strict policy; and, where Chromium is there, at work."""

import base64
import re
import shutil
from pathlib import Path

import httpx
import pytest

FILES = ("/", "/page.css", "/page.js")
LONG = {"prompt": "1+1=", "max_tokens": 1000, "ignore_eos": True, "stream": True}


def test_it_is_small_and_asks_nobody_else(client):
    size = 0
    for path, kind in zip(FILES, ("text/html", "text/css", "text/javascript")):
        response = client.get(path)
        assert response.status_code == 200 and response.headers["content-type"].startswith(kind)
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "*" not in policy
        assert not re.search(r"https?://|//[a-z]|\bon[a-z]+=|<script>|style=|innerHTML|eval\(", response.text)
        size += len(response.content)
    assert size < 100_000


def test_the_owners_of_blocks(client, server, wait_for):
    with client.stream("POST", "/v1/completions", json={**LONG, "n": 2}) as response:
        lines = response.iter_lines()
        next(lines)
        with httpx.Client(base_url=server.url) as other:
            found = other.get("/stats?blocks=1").json()
    running = [row for row in found["requests"] if row[1] == 1]
    assert len(running) == 2 and all(row[2] == 5 and row[5] > 0 for row in running)
    states = base64.b64decode(found["cells"])
    assert len(states) == found["num_blocks"] and found["blocks_per_cell"] == 1
    assert sum(state >= 2 for state in states) == sum(row[5] for row in running)  # short prompts share nothing
    assert "requests" not in client.get("/stats").json()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_at_work(browser, server, client, wait_for, scheme, tmp_path):
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    problems, outside = [], []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(server.url) else outside.append(request.url))

    def until(condition):
        """`wait_for_function` evaluates text in the page, which the policy forbids."""
        wait_for(lambda: page.evaluate(f"() => {condition}"))

    page.goto(server.url)
    until("document.getElementById('state').textContent === 'ready'")

    page.keyboard.type("12+35=")  # the message has the focus
    page.keyboard.press("Enter")
    until("document.querySelectorAll('.message')[1]?.lastChild.textContent === '47'")

    # an answer that would go on; Stop, or Escape, ends it on the server too
    page.evaluate("""() => {
        const plain = window.fetch;
        window.fetch = (url, o) => plain(url, { ...o, body: o.body.replace("{", '{"ignore_eos":true,') });
    }""")
    page.fill("#max-tokens", "900")
    page.fill("#text", "40+2=")
    page.keyboard.press("Enter")
    until("document.querySelectorAll('.message')[3]?.lastChild.textContent.length > 3")
    page.click("#stop") if scheme == "light" else page.keyboard.press("Escape")
    wait_for(lambda: client.get("/stats").json()["num_requests"] == client.get("/stats").json()["num_running"] == 0)
    until("!document.getElementById('send').disabled && document.getElementById('stop').disabled")

    with httpx.Client(base_url=server.url, timeout=60) as other, other.stream("POST", "/v1/completions", json=LONG):
        until("document.querySelectorAll('#requests tr').length > 0")
        until("/[1-9]\\d* owned/.test(document.getElementById('blocks-text').textContent)")
        page.screenshot(path=str(Path(tmp_path) / f"page-{scheme}.png"))
    assert (problems, outside) == ([], [])
    page.close()
