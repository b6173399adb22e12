"""``--profile``: torch's profiler around a unit, written as a trace for Perfetto or chrome://tracing and as a table."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechstudy.core.files import disk_errors
from mechstudy.machine.runtime import Runtime
from mechstudy.monitoring.profile_table import Recorded, operators_of, table
from mechstudy.store.manifest import slug

STEPS = 12  # counted steps of a unit that are recorded: enough to see the pattern, small enough to open


@contextmanager
def profiled(unit: str, runtime: Runtime, folder: Path) -> Iterator[None]:
    """Records the unit's first counted steps (training steps, batches), or all of it where it counts fewer.

    Writes ``<folder>/<unit>.trace.json`` and ``<folder>/<unit>.txt``.
    """
    from torch.profiler import ProfilerActivity, profile, schedule

    cuda = runtime.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    steps, began = 0, time.perf_counter()

    def save(finished: Any) -> None:
        recorded = Recorded(unit, runtime.device, steps, time.perf_counter() - began, operators_of(finished, cuda))
        name = slug(unit)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            finished.export_chrome_trace(str(folder / f"{name}.trace.json"))
            (folder / f"{name}.txt").write_text(table(recorded), encoding="utf-8")
        top = f", most time in {recorded.operators[0].name}" if recorded.operators else ""
        runtime.progress.log(f"profile: {folder / name}.txt and .trace.json (for ui.perfetto.dev){top}")

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*warmup.*")
        plan = schedule(wait=0, warmup=0, active=STEPS, repeat=1)
    how: dict[str, Any] = {"record_shapes": True, "profile_memory": True}
    with profile(activities=activities, schedule=plan, on_trace_ready=save, **how) as profiler:
        began = time.perf_counter()

        def count() -> None:
            nonlocal steps
            steps += 1
            if steps <= STEPS:
                profiler.step()

        runtime.progress.on_advance = count
        try:
            yield
        finally:
            runtime.progress.on_advance = None
