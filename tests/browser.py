"""Opens a page in a real browser, where there is one, and lets a script use it."""

import json
import re
import shutil
import subprocess

import pytest

START = """
const byId = (id) => document.getElementById(id);
const send = (target, event) => target.dispatchEvent(event);
const press = (key) => send(document.body, new KeyboardEvent("keydown", {key, bubbles: true}));
const viewer = () => byId("viewer").dataset.ready;
async function until(reached) {
  for (let i = 0; i < 200 && !reached(); i++) await new Promise((resolve) => setTimeout(resolve, 10));
}
// How many pixels of a canvas are not grey.
function coloured(id) {
  const canvas = byId(id);
  const all = canvas.getContext("2d", {willReadFrequently: true}).getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0;
  for (let i = 0; i < all.length; i += 4) count += all[i] !== all[i + 1] || all[i] !== all[i + 2];
  return count;
}
function pixel(id, [y, x]) {
  const canvas = byId(id);
  return Array.from(canvas.getContext("2d", {willReadFrequently: true}).getImageData(x, y, 1, 1).data).slice(0, 3);
}
function point(y, x) {
  const box = byId("picture").getBoundingClientRect();
  const at = {clientX: box.left + box.width * x, clientY: box.top + box.height * y};
  send(byId("picture"), new PointerEvent("pointermove", at));
  return byId("readout").textContent;
}
function finish(out) {
  const pre = document.createElement("pre");
  pre.id = "results"; pre.textContent = JSON.stringify(out); document.body.appendChild(pre);
}
"""
"""What scripts may use; `finish(out)` is their last word."""


def browse(path, *, script="", width=1280):
    """Returns (the page's final HTML, what the browser logged) after `script` ran; skips without chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on the PATH: the page is not opened in a real browser")
    copy = path.with_name("with_script.html")
    text = path.read_text(encoding="utf-8")
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
        "--disable-background-networking",
        "--disable-component-update",
        "--enable-logging=stderr",
        f"--user-data-dir={path.with_name('browser')}",
        f"--window-size={width},900",
        "--virtual-time-budget=5000",
    ]
    result = subprocess.run(
        [chromium, *flags, "--dump-dom", copy.as_uri()],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    logged = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return result.stdout, logged


def results(dom):
    return json.loads(
        re.search(r'<pre id="results">(.*?)</pre>', dom)[1].replace("&gt;", ">").replace("&lt;", "<")
    )
