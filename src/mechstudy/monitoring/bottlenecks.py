"""What held a phase up, by what it used of the machine: one table of rules, each with its evidence and its remedy.

A rule reads measured numbers alone. Thresholds stand beside the rule that uses them; `RULES` is in the order in which a
cause hides others: a machine that swaps looks idle, whatever else is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mechstudy.core.progress import duration
from mechstudy.core.sizes import human
from mechstudy.monitoring.expected_usage import Expected, expected
from mechstudy.monitoring.summary import SHORT, Use


@dataclass(frozen=True)
class Evidence:
    """A phase as measured: what it used, and what the study and the queue say.

    ``batch`` names the field that sets the size of its batches; ``gpus_here``: GPUs that the machine has, used or not;
    ``queued`` seconds that its jobs waited; ``slurm``: it ran as jobs; ``units`` that ran;
    ``own_range``: how busy the study says it is to be, in per cent.
    """

    phase: str
    use: Use
    units: int = 1
    batch: str = "compute.batch_tokens"
    batch_is: int | None = None
    source: str | None = None
    gpus_here: int = 0
    queued: float = 0.0
    restarts: int = 0
    slurm: bool = False
    own_range: tuple[float, float] | None = None

    @property
    def expected(self) -> Expected | None:
        return expected(self.phase, on_gpu=self.use.on_gpu, own=self.own_range)

    @property
    def low(self) -> bool:
        """Whether it was less busy than it should be."""
        return self.expected is not None and self.use.busy < self.expected.low


@dataclass(frozen=True)
class Bottleneck:
    """One cause: its name, the numbers it was read from, and the field to change."""

    name: str
    evidence: str
    change: str


@dataclass(frozen=True)
class Rule:
    """``applies`` to evidence, which ``says`` becomes words and ``change`` a remedy."""

    name: str
    applies: Callable[[Evidence], bool]
    says: Callable[[Evidence], str]
    change: Callable[[Evidence], str]


def bottlenecks(evidence: Evidence) -> list[Bottleneck]:
    """Every cause that the numbers show, the most telling first. Of a few seconds only the queue is judged."""
    rules = RULES if evidence.use.seconds >= SHORT else [rule for rule in RULES if rule.name in _WHATEVER_ITS_LENGTH]
    found = [Bottleneck(r.name, r.says(evidence), r.change(evidence)) for r in rules if r.applies(evidence)]
    causes = [item for item in found if item.name != UNEXPLAINED]
    return causes or found


def _at_least(value: float | None, bound: float) -> bool:
    return value is not None and value >= bound


def _reads(e: Evidence) -> bool:
    return (e.use.read or 0) >= (e.use.write or 0)


def _waits_for_disk(e: Evidence) -> bool:
    return _at_least(e.use.wait_io, 0.15) and e.use.busy < 0.9 and (e.use.read or 0) + (e.use.write or 0) > 0


def _cpu_field(e: Evidence) -> str:
    return f"compute.slurm.phases.{e.phase}.cpus" if e.slurm else "compute.threads"


def _memory_field(e: Evidence) -> str:
    return f"compute.slurm.phases.{e.phase}.memory" if e.slurm else "compute.max_parallel: 1"


def _double(e: Evidence) -> str:
    return f"{e.batch}: {2 * e.batch_is}" if e.batch_is else f"{e.batch}, twice as large"


def _rates(e: Evidence) -> str:
    read, write = e.use.read_rate or 0.0, e.use.write_rate or 0.0
    return f"read {human(read)}/s, wrote {human(write)}/s"


def _busy(e: Evidence) -> str:
    return f"{'GPU' if e.use.on_gpu else 'threads'} busy {e.use.busy:.0%} of the time, expected {e.expected}"


def _gpu_memory(e: Evidence) -> float:
    return (e.use.gpu_memory or 0) / (e.use.gpu_memory_bytes or 1)


def _threads_in_all(e: Evidence) -> float:
    return e.use.threads * e.use.parallel


SWAPPING, MEMORY, QUOTA, OVERSUBSCRIBED, OTHERS = (
    "swapping", "memory nearly full", "CPU quota used up", "more threads than cores", "others use the machine",
)  # fmt: skip
IDLE_GPU, LOADING, WRITING, SLOW_CPU, SMALL_BATCH = (
    "GPU not used", "reading data", "writing data", "CPU cannot keep up with the GPU", "small batch",
)  # fmt: skip
ONE_THREAD, QUEUE, RESTARTS, UNEXPLAINED = (
    "one thread works, the others wait", "waiting in the queue", "many restarts", "less busy than expected",
)  # fmt: skip
_WHATEVER_ITS_LENGTH = (QUEUE, RESTARTS)

RULES: Sequence[Rule] = (
    Rule(
        SWAPPING,
        lambda e: (e.use.swap or 0) > 64e6 and (e.use.swap or 0) / e.use.seconds > 1e6,
        lambda e: f"{human(e.use.swap or 0)} went to swap and back in {duration(e.use.seconds)}; "
        f"least memory available {human(e.use.available or 0)}",
        lambda e: f"{_memory_field(e)}, or a smaller {e.batch}",
    ),
    Rule(
        MEMORY,
        lambda e: e.use.available is not None and e.use.available < 0.05 * e.use.memory_bytes,
        lambda e: f"{human(e.use.available or 0)} of {human(e.use.memory_bytes)} were left at the least, "
        f"{human(e.use.rss)} resident",
        lambda e: f"{_memory_field(e)}, or a smaller {e.batch}",
    ),
    Rule(
        QUOTA,
        lambda e: _at_least(e.use.throttled, 0.1),
        lambda e: f"stopped {e.use.throttled or 0:.0%} of the time: {_threads_in_all(e):.0f} threads on "
        f"{e.use.usable:.3g} cores' worth of quota",
        lambda e: f"compute.threads: {max(1, int(e.use.usable))}, or more CPUs for the job or container",
    ),
    Rule(
        OVERSUBSCRIBED,
        lambda e: _threads_in_all(e) > 1.05 * e.use.usable and _at_least(e.use.wait_cpu, 0.2),
        lambda e: f"{_threads_in_all(e):.0f} threads on {e.use.usable:.3g} cores; some process waited for a core "
        f"{e.use.wait_cpu or 0:.0%} of the time",
        lambda e: f"compute.threads: {max(1, int(e.use.usable))}"
        + (f", or compute.max_parallel: {max(1, e.use.parallel // 2)}" if e.use.parallel > 1 else ""),
    ),
    Rule(
        OTHERS,
        lambda e: e.low and not e.use.on_gpu and e.use.parallel == 1 and _at_least(e.use.others, 0.25),
        lambda e: f"other processes used {e.use.others or 0:.0%} of the machine's {e.use.machine_cores} cores; "
        f"{_busy(e)}",
        lambda e: "compute.slurm.extra: ['--exclusive']" if e.slurm else "compute.threads, fewer; or wait for them",
    ),
    Rule(
        IDLE_GPU,
        lambda e: e.expected is not None and e.gpus_here > 0 and not e.use.on_gpu and e.use.device == "cpu",
        lambda e: f"ran on the CPU of a machine with {e.gpus_here} GPU{'s' if e.gpus_here > 1 else ''}",
        lambda e: "compute.device: auto (`mechstudy doctor` says whether torch can use the GPU)",
    ),
    Rule(
        LOADING,
        lambda e: e.low and _waits_for_disk(e) and _reads(e),
        lambda e: f"some process waited for a disk {e.use.wait_io or 0:.0%} of the time; {_rates(e)}; {_busy(e)}",
        lambda e: "compute.stage: auto with $TMPDIR on a local disk, or dictionaries.source: stream"
        if e.phase in ("train", "variant") and e.source != "stream"
        else "the run on a faster disk (--out), or corpus and model there",
    ),
    Rule(
        WRITING,
        lambda e: e.low and _waits_for_disk(e) and not _reads(e),
        lambda e: f"some process waited for a disk {e.use.wait_io or 0:.0%} of the time; {_rates(e)}; {_busy(e)}",
        lambda e: "dictionaries.store_dtype: int8 (half the bytes), or dictionaries.source: stream (none)"
        if e.phase == "capture"
        else "the run on a faster disk (--out)",
    ),
    Rule(
        SLOW_CPU,
        lambda e: e.low and e.use.on_gpu and e.use.cpu >= 0.9,
        lambda e: f"{_busy(e)}, while {e.use.threads:.3g} CPU threads were busy {e.use.cpu:.0%}",
        lambda e: f"{_cpu_field(e)}: {int(2 * e.use.threads)}",
    ),
    Rule(
        SMALL_BATCH,
        lambda e: e.low and e.use.on_gpu and e.use.cpu < 0.9 and _gpu_memory(e) < 0.6 and not _waits_for_disk(e),
        lambda e: f"{_busy(e)}, with {_gpu_memory(e):.0%} of its memory in use",
        lambda e: _double(e),
    ),
    Rule(
        ONE_THREAD,
        lambda e: e.low
        and not e.use.on_gpu
        and e.use.threads > 1
        and 0.7 <= e.use.cores <= 1.4
        and not _waits_for_disk(e)
        and not _at_least(e.use.others, 0.25),
        lambda e: f"{e.use.cores:.2f} cores busy on average of {e.use.threads:.3g} threads given",
        lambda e: (
            f"compute.max_parallel: {int(_threads_in_all(e))} (units side by side, a thread each)"
            if e.units > 1
            else _double(e)
        ),
    ),
    Rule(
        QUEUE,
        lambda e: e.queued > max(60.0, e.use.seconds),
        lambda e: f"waited {duration(e.queued)} in the queue for {duration(e.use.seconds)} of work",
        lambda e: f"compute.slurm.phases.{e.phase}.time, shorter (jobs that fit gaps start earlier); or partition, qos",
    ),
    Rule(
        RESTARTS,
        lambda e: e.restarts >= 3,
        lambda e: f"restarted {e.restarts} times for {e.units} unit{'s' if e.units > 1 else ''}",
        lambda e: f"compute.slurm.phases.{e.phase}.time, longer" if e.slurm else "`mechstudy status` says why it ended",
    ),
    Rule(
        UNEXPLAINED,
        lambda e: e.low,
        lambda e: _busy(e),
        lambda e: f"`mechstudy {e.phase} STUDY --profile` shows where the time goes"
        if e.phase not in ("features", "stream", "variant")
        else "`mechstudy run STUDY --profile` shows where the time goes",
    ),
)  # fmt: skip
