"""How fast the report's graph page opens and moves: `python -m benchmarks.graph_page`. Needs Chromium.

A page of 2,073 nodes and its edges in headless Chromium, which draws in software: time until the graph stands, and
frames a second while the view is dragged and zoomed for some seconds, all edges shown.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

from tests.browser.report_browser import Browser
from tests.support.report_fixture import BEHAVIOURS, FakeStudy

from mechstudy.report.pages import build_report

_MOVE = """(seconds) => new Promise((done) => {
  const canvas = document.getElementById("g-over"), box = canvas.getBoundingClientRect();
  const at = (x, y) => ({ bubbles: true, cancelable: true, pointerId: 1, clientX: box.left + x, clientY: box.top + y });
  canvas.setPointerCapture = () => {};
  const send = (kind, x, y) => canvas.dispatchEvent(new PointerEvent(kind, at(x, y)));
  const began = performance.now(), frames = [];
  send("pointerdown", 300, 300);
  const step = (now) => {
    frames.push(now);
    const t = (now - began) / 1000;
    if (t > seconds) { send("pointerup", 300, 300); done(frames); return; }
    if (frames.length % 2) send("pointermove", 300 + 200 * Math.sin(3 * t), 300 + 100 * Math.cos(2 * t));
    else {
      const turned = { ...at(400, 300), ctrlKey: true, deltaY: 20 * Math.cos(2 * t) };
      canvas.dispatchEvent(new WheelEvent("wheel", turned));
    }
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of moving")
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build_report(FakeStudy(Path(folder) / "study", prompts=2).data, Path(folder) / "report")
        browser = Browser()
        for _ in range(a.repeats):
            began = time.perf_counter()
            browser.open(Path(folder) / "report" / f"graph-{BEHAVIOURS[0]}.html", f"#g={BEHAVIOURS[0]}-0")
            opened = time.perf_counter() - began
            browser.page.locator("#g-influence").fill("100")
            browser.page.locator("#g-topk").select_option("0")
            n_nodes, n_edges = browser.evaluate("[mechstudyGraph.nodeCount, mechstudyGraph.shownEdges.length]")
            frames = browser.page.evaluate(_MOVE, a.seconds)
            gaps = sorted(b - a for a, b in itertools.pairwise(frames))
            rate = 1000 * (len(frames) - 1) / (frames[-1] - frames[0])
            print(
                f"{n_nodes:,} nodes, {n_edges:,} edges: opens in {opened:.2f} s, {rate:.0f} frames/s, "
                f"slowest tenth {gaps[int(0.9 * len(gaps))]:.0f} ms",
                flush=True,
            )
        browser.close()


if __name__ == "__main__":
    main()
