"""`--profile`: torch's profiler around a unit, as a trace for chrome://tracing or Perfetto and as a table."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechstudy.core.disk import disk_errors
from mechstudy.core.manifest import slug
from mechstudy.core.progress import Bar
from mechstudy.core.runtime import Runtime

STEPS = 12  # counted steps of a unit that are recorded: enough to see the pattern, small enough to open
ROWS = 40


@contextmanager
def profiled(unit: str, runtime: Runtime, folder: Path) -> Iterator[None]:
    """Records the unit's first counted steps (training steps, batches), or all of it when it counts fewer.

    Writes ``<folder>/<unit>.trace.json`` and ``<folder>/<unit>.txt``.
    """
    from torch.profiler import ProfilerActivity, profile, schedule

    activities = [ProfilerActivity.CPU]
    cuda = runtime.device.startswith("cuda")
    if cuda:
        activities.append(ProfilerActivity.CUDA)
    name = slug(unit)

    def save(found: Any) -> None:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            found.export_chrome_trace(str(folder / f"{name}.trace.json"))
            order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
            table = found.key_averages(group_by_input_shape=True).table(sort_by=order, row_limit=ROWS)
            (folder / f"{name}.txt").write_text(f"{unit}\n\n{table}\n")
        runtime.progress.log(f"profile: {folder / name}.trace.json and .txt")

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*warmup.*")
        steps = schedule(wait=0, warmup=0, active=STEPS, repeat=1)
    with profile(activities=activities, record_shapes=True, schedule=steps, on_trace_ready=save) as profiler:
        inner = runtime.progress._advanced

        def counted(bar: Bar, now: float) -> None:
            profiler.step()
            inner(bar, now)

        runtime.progress._advanced = counted  # type: ignore[method-assign]  # for this unit only
        try:
            yield
        finally:
            runtime.progress._advanced = inner  # type: ignore[method-assign]
