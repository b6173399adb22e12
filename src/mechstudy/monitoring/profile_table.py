"""The table of a recorded profile: time and memory by operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mechstudy.core.sizes import human

ROWS = 25
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
    lines = [*_head(recorded), "", *_by_name(recorded), "", *_by_shape(recorded), "", *_memory(recorded)]
    return "\n".join(lines) + "\n"


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


def _by_name(recorded: Recorded) -> list[str]:
    sums: dict[str, list[Operator]] = {}
    for operator in recorded.operators:
        sums.setdefault(operator.name, []).append(operator)
    names = ("calls", "cpu_seconds", "gpu_seconds", "bytes_taken")
    totals = [
        Operator(name, "", **{field: sum(getattr(operator, field) for operator in each) for field in names})
        for name, each in sums.items()
    ]
    return ["Operators, each without its callees", *_rows(sorted(totals, key=_time, reverse=True), recorded)]


def _by_shape(recorded: Recorded) -> list[str]:
    return ["The same by input shapes", *_rows(recorded.operators, recorded)]


def _memory(recorded: Recorded) -> list[str]:
    allocating = sorted(recorded.operators, key=lambda operator: -operator.bytes_taken)
    allocating = [operator for operator in allocating if operator.bytes_taken > 0][:10]
    lines = ["Memory allocated, and not freed by the same operator"]
    for operator in allocating:
        lines.append(f"  {human(operator.bytes_taken):>9}  {_cut(operator.name, _NAME)}  {operator.shapes}")
    return lines if allocating else [*lines, "  none"]


def _rows(operators: Sequence[Operator], recorded: Recorded) -> list[str]:
    gpu = recorded.on_gpu
    total = sum(o.gpu_seconds if gpu else o.cpu_seconds for o in recorded.operators) or 1.0
    head = f"  {'share':>6}  {'GPU ms' if gpu else 'ms':>9}  "
    head += f"{'CPU ms':>9}  " if gpu else ""
    lines = [head + f"{'calls':>7}  {'each':>9}  {'memory':>9}  {'operator':{_NAME}}  shapes".rstrip()]
    for operator in operators[:ROWS]:
        time = operator.gpu_seconds if gpu else operator.cpu_seconds
        line = f"  {time / total:6.1%}  {1e3 * time:9.2f}  "
        line += f"{1e3 * operator.cpu_seconds:9.2f}  " if gpu else ""
        line += f"{operator.calls:7,}  {_each(time / max(1, operator.calls)):>9}  {_memory_of(operator):>9}  "
        lines.append((line + f"{_cut(operator.name, _NAME):{_NAME}}  {_cut(operator.shapes, _SHAPES)}").rstrip())
    if len(operators) > ROWS:
        rest = sum(o.gpu_seconds if gpu else o.cpu_seconds for o in operators[ROWS:])
        lines.append(f"  {rest / total:6.1%}  in {len(operators) - ROWS} others")
    return lines


def _each(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} us" if seconds < 1e-3 else f"{1e3 * seconds:.2f} ms"


def _memory_of(operator: Operator) -> str:
    return human(operator.bytes_taken) if operator.bytes_taken > 0 else ""


def _share(part: float, whole: float) -> str:
    return f"{part / whole:6.1%}" if whole > 0 else "   n/a"


def _shapes(shapes: Any) -> str:
    """``[64, 64] x [64, 64]``, without scalars and arguments that have no shape."""
    return " x ".join(str(list(shape)) for shape in shapes or () if shape)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
