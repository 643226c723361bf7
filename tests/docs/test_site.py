"""The site builds strictly. A real browser shows it within its window, asks for nothing elsewhere, and finds words in it."""

import json
import os
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests import browser
from tests.docs.pages import DOCS, ROOT

pytestmark = pytest.mark.slow

HARNESS = """<!doctype html><meta charset="utf-8"><body><script>
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
async function until(condition) {
  for (let tries = 0; tries < 300; tries++) { const found = condition(); if (found) return found; await wait(100); }
}
async function open(path, width) {
  const frame = document.createElement("iframe");
  Object.assign(frame, {width, height: 900, src: path});
  frame.style.border = 0;
  document.body.replaceChildren(frame);
  await new Promise(loaded => frame.onload = loaded);
  return frame;
}
async function look(path, width) {
  const frame = await open(path, width), page = frame.contentDocument, view = frame.contentWindow;
  await until(() => [...page.images].every(image => image.complete || image.loading == "lazy"));
  return {
    path, width, title: page.title, page: page.documentElement.scrollWidth, math: page.querySelectorAll("math").length,
    broken: [...page.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src),
    loaded: view.performance.getEntriesByType("resource").map(entry => entry.name),
  };
}
async function search(word) {
  const frame = await open("index.html", 1280), page = frame.contentDocument;
  const input = page.querySelector("input[name=query]");
  input.focus(); input.value = word; input.dispatchEvent(new Event("input", {bubbles: true}));
  input.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true, key: "p"}));
  const results = await until(() => {
    const links = page.querySelectorAll(".md-search-result__link"); return links.length ? links : null;
  });
  return [...results ?? []].map(link => link.getAttribute("href"));
}
(async () => {
  const seen = [];
  for (const path of PAGES) for (const width of [1280, 390]) seen.push(await look(path, width));
  const found = await search("perturb");
  await fetch("/seen", {method: "POST", body: JSON.stringify({seen, found})});
})().catch(error => fetch("/seen", {method: "POST", body: JSON.stringify({error: String(error)})}));
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_it_has_what_is_made_from_other_files(site):
    commands = (site / "reference/commands.html").read_text(encoding="utf-8")
    assert "--block-size" in commands and "--list" in commands and "--help -->" not in commands
    gallery = (site / "gallery.html").read_text(encoding="utf-8")
    figures = [
        path.relative_to(DOCS).as_posix() for pattern in ("results/*", "demo") for path in DOCS.glob(f"{pattern}/*.svg")
    ]
    assert len(figures) > 10
    assert not [figure for figure in figures if f'src="{figure}"' not in gallery]
    assert "<math" in (site / "idea.html").read_text(encoding="utf-8")
    assert "arithmatex" not in (site / "idea.html").read_text(encoding="utf-8")
    assert (site / "benchmarks/cpu-2-threads/tables.html").exists()
    assert (site / "examples/finetune.html").exists() and (site / "changelog.html").exists()
    reference = (site / "reference/encodings.html").read_text(encoding="utf-8")
    assert 'id="comrope.encoding"' in reference and "Raises:" in reference


def test_no_page_asks_for_anything_from_elsewhere(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        asked = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]*)\"", text)
        asked += re.findall(r"<link[^>]*\shref=\"([^\"]*)\"", text)
        outside = [url for url in asked if re.match(r"(https?:)?//", url)]
        assert not outside, (path, outside)
    for path in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), path


class Handler(SimpleHTTPRequestHandler):
    """Serves the site and the harness, and keeps what the harness reports."""

    harness = ""
    seen: ClassVar[dict] = {}
    done = threading.Event()

    def do_GET(self):
        if self.path != "/harness.html":
            super().do_GET()
            return
        body = self.harness.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        Handler.seen = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        Handler.done.set()

    def log_message(self, *_):
        pass


def test_a_browser_shows_it(site, tmp_path):
    """Each page on a desktop and a phone, in frames of a page of ours, which asks the search for a word as well."""
    pages = sorted(
        path.relative_to(site).as_posix()
        for path in site.rglob("*.html")
        if path.name not in ("404.html", "report.html")
    )
    pages = [page for page in pages if not page.endswith("tables.html")]
    Handler.harness = HARNESS.replace("PAGES", json.dumps(pages))
    Handler.done.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{server.server_port}/"
    quiet = [f"--disable-{name}" for name in ("background-networking", "sync", "component-update", "quic", "gpu")]
    flags = ["--headless", "--no-sandbox", "--no-first-run", "--enable-logging=stderr", *quiet]
    flags += [
        "--disable-features=AutofillServerCommunication",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]
    net_log = tmp_path / "net.json"
    command = [browser.executable(), *flags, f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={net_log}"]
    errors = tmp_path / "stderr"
    with (
        errors.open("w") as stream,
        subprocess.Popen(
            [*command, "--remote-debugging-port=0", f"{origin}harness.html"], stdout=stream, stderr=stream
        ) as process,
    ):
        try:
            assert Handler.done.wait(600), errors.read_text()
        finally:
            process.terminate()
            process.wait(60)
            server.shutdown()
            server.server_close()
    found = Handler.seen
    assert "error" not in found, found
    assert [(page["path"], page["width"]) for page in found["seen"]] == [(p, w) for p in pages for w in (1280, 390)]
    for page in found["seen"]:
        assert page["page"] <= page["width"], page  # wide tables and code scroll in themselves
        assert page["title"] and not page["broken"], page
        assert page["loaded"] and all(url.startswith(origin) for url in page["loaded"]), page
    assert max(page["math"] for page in found["seen"] if page["path"] == "idea.html") > 50
    assert any("reference/positions.html" in link for link in found["found"]), found["found"]
    console = [line for line in errors.read_text().splitlines() if ":CONSOLE" in line]
    assert not console, console
    log = net_log.read_text(
        encoding="utf-8", errors="replace"
    )  # with the browser's own requests, which no page initiates
    asked = set(re.findall(r'"initiator":"http.*"url":"([^"]*)"', log))
    assert len(asked) > len(pages) and not [url for url in asked if not url.startswith(origin)]
