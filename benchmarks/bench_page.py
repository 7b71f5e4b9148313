"""What scrolling through 100,000 pictures costs a browser, and what jumping costs the server.

The library is that of `bench_overhead.py`: its files do not exist, so that every tile is a quiet
placeholder and what is measured is the page, not JPEGs. Chromium draws without a GPU; its own
counters tell what it spends on a frame.

usage: python bench_page.py DATA [--files 100000] [--library FOLDER]
DATA holds val.tsv (path, caption) and images/; FOLDER is a library that was filled before.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench_overhead import fill
from playwright.sync_api import CDPSession, Page, sync_playwright
from report import write_report

import mmsearch

SCROLL = """async (seconds) => {
  const start = performance.now();
  let frames = 0;
  while (performance.now() - start < 1000 * seconds) {
    scrollBy(0, 240);
    await new Promise((resolve) => requestAnimationFrame(resolve));
    frames += 1;
  }
  return frames;
}"""
WAITING = "document.querySelectorAll('.tile.waiting').length"
COUNTERS = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration", "TaskDuration")


@contextmanager
def serving(library: Path) -> Iterator[str]:
    """Run the server's own process and tell its address."""
    command = [sys.executable, "-m", "mmsearch.cli", "serve", library, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"Serving at (\S+)/", line):
                    yield found.group(1)
                    break
        finally:
            process.terminate()


def settled(page: Page, started: float) -> float:
    """Wait until every tile in the document has its picture; return seconds since `started`."""
    page.wait_for_timeout(120)
    while page.evaluate(WAITING):
        page.wait_for_timeout(20)
    return round(time.perf_counter() - started, 2)


def memory(page: Page, session: CDPSession) -> dict[str, Any]:
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")["usedSize"]
    nodes = session.send("Memory.getDOMCounters")["nodes"]
    tiles = page.evaluate("document.querySelectorAll('.tile').length")
    return {"heap_mb": round(used / 1e6, 2), "nodes": nodes, "tiles": tiles}


def measured(page: Page, address: str) -> dict[str, Any]:
    """Scroll, jump and look at what is left in memory."""
    started = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("html.ready")
    figures: dict[str, Any] = {"ready_s": round(time.perf_counter() - started, 2)}
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def counters() -> dict[str, float]:
        found = session.send("Performance.getMetrics")["metrics"]
        return {each["name"]: each["value"] for each in found}

    figures["memory_before"] = memory(page, session)
    before = counters()
    frames = page.evaluate(SCROLL, 5)
    after = counters()
    figures["scrolled"] = {
        "frames": frames,
        "ms_a_frame": {n: round(1000 * (after[n] - before[n]) / frames, 2) for n in COUNTERS},
    }
    figures["jumps_s"] = {}
    for place in (0.1, 0.5, 0.99, 0.3):
        started = time.perf_counter()
        page.evaluate("place => scrollTo(0, document.body.scrollHeight * place)", place)
        figures["jumps_s"][str(place)] = settled(page, started)
    for i in range(60):
        place = i * 7919 % 1000 / 1000
        page.evaluate("place => scrollTo(0, document.body.scrollHeight * place)", place)
        settled(page, time.perf_counter())
    figures["memory_after_60_jumps"] = memory(page, session)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--library", type=Path)
    options = parser.parse_args()
    figures: dict[str, Any] = {"files": options.files}
    with tempfile.TemporaryDirectory() as folder:
        library = options.library or Path(folder)
        if options.library is None:
            fill(library, mmsearch.load_encoder(), options.data, options.files)
        with serving(library) as address, sync_playwright() as started:
            browser = started.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            page.set_default_timeout(120_000)
            figures["chromium"] = browser.version
            figures["all pictures"] = measured(page, f"{address}/")
            figures["a question"] = measured(page, f"{address}/?q=a+dog")
            browser.close()
    write_report("page", figures)


if __name__ == "__main__":
    main()
