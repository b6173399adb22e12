"""``--profile``: torch's profiler around a unit, written as a trace for Perfetto or chrome://tracing and as a table."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechstudy.core.files import disk_errors
from mechstudy.core.sizes import human
from mechstudy.machine.runtime import Runtime
from mechstudy.store.manifest import slug

STEPS = 12  # counted steps of a unit that are recorded: enough to see the pattern, small enough to open
_ROWS = 25
_NAME, _SHAPES = 34, 44  # columns


@dataclass(frozen=True)
class Operator:
    """One operator with one set of input shapes: calls, its own seconds (without its callees'), bytes it allocated."""

    name: str
    shapes: str
    calls: int
    cpu_seconds: float
    gpu_seconds: float
    bytes_taken: int


@dataclass(frozen=True)
class Recorded:
    """The recorded part of a unit: counted steps, wall seconds, operators with the slowest first."""

    unit: str
    device: str
    steps: int
    seconds: float
    operators: Sequence[Operator]

    @property
    def on_gpu(self) -> bool:
        """Whether kernels ran on a GPU."""
        return any(operator.gpu_seconds for operator in self.operators)


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


def operators_of(profiler: Any, cuda: bool) -> list[Operator]:
    """Every operator by name and input shapes, slowest first: by GPU time where there is one, else by CPU time."""
    operators = [
        Operator(
            str(event.key),
            _shapes(event.input_shapes),
            int(event.count),
            event.self_cpu_time_total / 1e6,
            (event.self_device_time_total if cuda else 0.0) / 1e6,
            int(event.self_device_memory_usage if cuda else event.self_cpu_memory_usage),
        )
        for event in profiler.key_averages(group_by_input_shape=True)
        if not str(event.key).startswith("ProfilerStep") and str(event.key) != "[memory]"
    ]
    return sorted(operators, key=_time, reverse=True)


def _time(operator: Operator) -> tuple[float, float]:
    return operator.gpu_seconds, operator.cpu_seconds


def table(recorded: Recorded) -> str:
    """The text of the page."""
    by_name = ["Operators, each without its callees", *_rows(_by_name(recorded.operators), recorded)]
    by_shape = ["The same by input shapes", *_rows(recorded.operators, recorded)]
    return "\n".join([*_head(recorded), "", *by_name, "", *by_shape, "", *_memory(recorded)]) + "\n"


def _head(recorded: Recorded) -> list[str]:
    spent = sum(operator.cpu_seconds for operator in recorded.operators)
    first = f"the first {recorded.steps} steps" if recorded.steps else "all of it (it counts no steps)"
    lines = [
        f"{recorded.unit} on {recorded.device}: {first}, {recorded.seconds:.3g} s with the profiler on",
        f"  in operators on the CPU  {spent:9.3f} s  {_share(spent, recorded.seconds)} of the time",
    ]
    if recorded.on_gpu:
        gpu = sum(operator.gpu_seconds for operator in recorded.operators)
        lines.append(f"  in kernels on the GPU    {gpu:9.3f} s  {_share(gpu, recorded.seconds)} of the time")
    rest = max(0.0, recorded.seconds - spent)
    lines.append(f"  elsewhere                {rest:9.3f} s  {_share(rest, recorded.seconds)}: Python, files, waiting")
    return [*lines, "  Operators of several threads count once for each, so that shares may add up to more than 100%."]


def _by_name(operators: Sequence[Operator]) -> list[Operator]:
    """The sums over input shapes."""
    sums: dict[str, list[Operator]] = {}
    for operator in operators:
        sums.setdefault(operator.name, []).append(operator)
    names = ("calls", "cpu_seconds", "gpu_seconds", "bytes_taken")
    totals = [
        Operator(name, "", **{field: sum(getattr(operator, field) for operator in each) for field in names})
        for name, each in sums.items()
    ]
    return sorted(totals, key=_time, reverse=True)


def _memory(recorded: Recorded) -> list[str]:
    allocating = sorted((o for o in recorded.operators if o.bytes_taken > 0), key=lambda o: -o.bytes_taken)[:10]
    lines = [f"  {human(o.bytes_taken):>9}  {_cut(o.name, _NAME)}  {o.shapes}" for o in allocating]
    return ["Memory allocated, and not freed by the same operator", *(lines or ["  none"])]


def _rows(operators: Sequence[Operator], recorded: Recorded) -> list[str]:
    gpu = recorded.on_gpu
    total = sum(o.gpu_seconds if gpu else o.cpu_seconds for o in recorded.operators) or 1.0
    head = f"  {'share':>6}  {'GPU ms' if gpu else 'ms':>9}  "
    head += f"{'CPU ms':>9}  " if gpu else ""
    lines = [head + f"{'calls':>7}  {'each':>9}  {'memory':>9}  {'operator':{_NAME}}  shapes".rstrip()]
    for operator in operators[:_ROWS]:
        seconds = operator.gpu_seconds if gpu else operator.cpu_seconds
        memory = human(operator.bytes_taken) if operator.bytes_taken > 0 else ""
        line = f"  {seconds / total:6.1%}  {1e3 * seconds:9.2f}  "
        line += f"{1e3 * operator.cpu_seconds:9.2f}  " if gpu else ""
        line += f"{operator.calls:7,}  {_each(seconds / max(1, operator.calls)):>9}  {memory:>9}  "
        lines.append((line + f"{_cut(operator.name, _NAME):{_NAME}}  {_cut(operator.shapes, _SHAPES)}").rstrip())
    if len(operators) > _ROWS:
        rest = sum(o.gpu_seconds if gpu else o.cpu_seconds for o in operators[_ROWS:])
        lines.append(f"  {rest / total:6.1%}  in {len(operators) - _ROWS} others")
    return lines


def _each(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} us" if seconds < 1e-3 else f"{1e3 * seconds:.2f} ms"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:6.1%}" if whole > 0 else "   n/a"


def _shapes(shapes: Any) -> str:
    """``[64, 64] x [64, 64]``, without scalars and arguments that have no shape."""
    return " x ".join(str(list(shape)) for shape in shapes or () if shape)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
