"""`--profile`: torch's profiler around a unit, as a trace for Perfetto or chrome://tracing and a table for people."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechstudy.core.files import disk_errors
from mechstudy.core.progress import Bar
from mechstudy.machine.runtime import Runtime
from mechstudy.monitoring.profile_table import Recorded, operators_of, table
from mechstudy.store.manifest import slug

STEPS = 12  # counted steps of a unit that are recorded: enough to see the pattern, small enough to open


@contextmanager
def profiled(unit: str, runtime: Runtime, folder: Path) -> Iterator[None]:
    """Records the unit's first counted steps (training steps, batches), or all of it when it counts fewer.

    Writes ``<folder>/<unit>.trace.json`` and ``<folder>/<unit>.txt``.
    """
    from torch.profiler import ProfilerActivity, profile, schedule

    cuda = runtime.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    steps, began = 0, time.perf_counter()

    def save(found: Any) -> None:
        recorded = Recorded(unit, runtime.device, steps, time.perf_counter() - began, operators_of(found, cuda))
        _save(folder, recorded, found, runtime)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*warmup.*")
        plan = schedule(wait=0, warmup=0, active=STEPS, repeat=1)
    how: dict[str, Any] = {"record_shapes": True, "profile_memory": True}
    with profile(activities=activities, schedule=plan, on_trace_ready=save, **how) as profiler:
        began = time.perf_counter()
        inner = runtime.progress._advanced

        def counted(bar: Bar, now: float) -> None:
            nonlocal steps
            steps += 1
            if steps <= STEPS:
                profiler.step()
            inner(bar, now)

        runtime.progress._advanced = counted  # type: ignore[method-assign]  # for this unit only
        try:
            yield
        finally:
            runtime.progress._advanced = inner  # type: ignore[method-assign]


def _save(folder: Path, recorded: Recorded, found: Any, runtime: Runtime) -> None:
    name = slug(recorded.unit)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(folder / f"{name}.trace.json"))
        (folder / f"{name}.txt").write_text(table(recorded), encoding="utf-8")
    top = f", most time in {recorded.operators[0].name}" if recorded.operators else ""
    runtime.progress.log(f"profile: {folder / name}.txt and .trace.json (for ui.perfetto.dev){top}")
