"""Bottlenecks of a phase: rules that read its measured use, each with its evidence and its remedy.

`CAUSES` are in the order in which one hides others: a machine that swaps looks idle, whatever else is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mechstudy.core.progress import duration
from mechstudy.core.sizes import human
from mechstudy.monitoring.expected_usage import UNJUDGED, Expected, PhaseProfile, expected
from mechstudy.monitoring.summary import SHORT, Use


@dataclass(frozen=True)
class Evidence:
    """A phase as measured, with what the study and the queue say of it.

    ``profile`` is what is expected of it, ``batch_is`` its batch size; ``gpus_here`` counts the machine's
    GPUs, used or not; ``queued`` is the seconds its jobs waited; ``slurm`` says whether it ran as jobs; ``units``
    counts those that ran; ``own_range`` is the busy range in per cent that the study expects.
    """

    phase: str
    use: Use
    units: int = 1
    profile: PhaseProfile = UNJUDGED
    batch_is: int | None = None
    source: str | None = None
    gpus_here: int = 0
    queued: float = 0.0
    restarts: int = 0
    slurm: bool = False
    own_range: tuple[float, float] | None = None

    @property
    def expected(self) -> Expected | None:
        """How busy the phase should be."""
        return expected(self.profile, on_gpu=self.use.on_gpu, own=self.own_range)

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


CAUSES = (
    SWAPPING, MEMORY, QUOTA, OVERSUBSCRIBED, OTHERS, IDLE_GPU, LOADING, WRITING, SLOW_CPU, SMALL_BATCH, ONE_THREAD,
    QUEUE, RESTARTS, UNEXPLAINED,
) = (
    "swapping", "memory nearly full", "CPU quota used up", "more threads than cores", "others use the machine",
    "GPU not used", "reading data", "writing data", "CPU cannot keep up with the GPU", "small batch",
    "one thread works, the others wait", "waiting in the queue", "many restarts", "less busy than expected",
)  # fmt: skip


def bottlenecks(evidence: Evidence) -> list[Bottleneck]:
    """Every cause that the numbers show, the most important first. Short phases are judged only by their queue."""
    causes = list(_of_queue(evidence))
    if evidence.use.seconds >= SHORT:
        causes += [*_of_machine(evidence), *_of_data(evidence), *_of_work(evidence)]
    causes.sort(key=lambda cause: CAUSES.index(cause.name))
    if evidence.use.seconds >= SHORT and evidence.low and not causes:
        command = evidence.profile.command
        change = f"`mechstudy {command} STUDY --profile` shows where the time goes"
        causes.append(Bottleneck(UNEXPLAINED, _busy(evidence), change))
    return causes


def _of_machine(e: Evidence) -> Iterator[Bottleneck]:
    """Memory, cores, and other users of the machine."""
    use, threads = e.use, e.use.threads * e.use.parallel
    memory = f"compute.slurm.phases.{e.phase}.memory" if e.slurm else "compute.max_parallel: 1"
    memory = f"{memory}, or a smaller {e.profile.batch}"
    fewer = f"compute.threads: {max(1, int(use.usable))}"
    swap = use.swap or 0
    if swap > 64e6 and swap / use.seconds > 1e6:
        moved = f"{human(swap)} went to swap and back in {duration(use.seconds)}"
        yield Bottleneck(SWAPPING, f"{moved}; least memory available {human(use.available or 0)}", memory)
    if use.available is not None and use.available < 0.05 * use.memory_bytes:
        left = f"{human(use.available)} of {human(use.memory_bytes)} were left at the least"
        yield Bottleneck(MEMORY, f"{left}, {human(use.rss)} resident", memory)
    if _at_least(use.throttled, 0.1):
        stopped = f"stopped {use.throttled:.0%} of the time"
        quota = f"{threads:.0f} threads on {use.usable:.3g} cores' worth of quota"
        yield Bottleneck(QUOTA, f"{stopped}: {quota}", f"{fewer}, or more CPUs for the job or container")
    if threads > 1.05 * use.usable and _at_least(use.wait_cpu, 0.2):
        waited = f"some process waited for a core {use.wait_cpu:.0%} of the time"
        change = f"{fewer}, or compute.max_parallel: {max(1, use.parallel // 2)}" if use.parallel > 1 else fewer
        yield Bottleneck(OVERSUBSCRIBED, f"{threads:.0f} threads on {use.usable:.3g} cores; {waited}", change)
    if e.low and not use.on_gpu and use.parallel == 1 and _at_least(use.others, 0.25):
        others = f"other processes used {use.others:.0%} of the machine's {use.machine_cores} cores"
        change = "compute.slurm.extra: ['--exclusive']" if e.slurm else "compute.threads, fewer; or wait for them"
        yield Bottleneck(OTHERS, f"{others}; {_busy(e)}", change)
    if e.expected is not None and e.gpus_here > 0 and not use.on_gpu and use.device == "cpu":
        here = f"ran on the CPU of a machine with {e.gpus_here} GPU{'s' if e.gpus_here > 1 else ''}"
        yield Bottleneck(IDLE_GPU, here, "compute.device: auto (`mechstudy doctor` says whether torch can use the GPU)")


def _of_data(e: Evidence) -> Iterator[Bottleneck]:
    """Reading and writing."""
    if not (e.low and _waits_for_disk(e)):
        return
    rates = f"read {human(e.use.read_rate or 0.0)}/s, wrote {human(e.use.write_rate or 0.0)}/s"
    evidence = f"some process waited for a disk {e.use.wait_io:.0%} of the time; {rates}; {_busy(e)}"
    if (e.use.read or 0) >= (e.use.write or 0):
        change = "the run on a faster disk (--out), or corpus and model there"
        if e.profile.when_reading and e.source != "stream":
            change = e.profile.when_reading
        yield Bottleneck(LOADING, evidence, change)
    else:
        change = e.profile.when_writing or "the run on a faster disk (--out)"
        yield Bottleneck(WRITING, evidence, change)


def _of_work(e: Evidence) -> Iterator[Bottleneck]:
    """Work that leaves the GPU or the threads idle."""
    use = e.use
    larger = f"{e.profile.batch}: {2 * e.batch_is}" if e.batch_is else f"{e.profile.batch}, twice as large"
    memory = (use.gpu_memory or 0) / (use.gpu_memory_bytes or 1)
    if e.low and use.on_gpu and use.cpu >= 0.9:
        cpus = f"compute.slurm.phases.{e.phase}.cpus" if e.slurm else "compute.threads"
        evidence = f"{_busy(e)}, while {use.threads:.3g} CPU threads were busy {use.cpu:.0%}"
        yield Bottleneck(SLOW_CPU, evidence, f"{cpus}: {int(2 * use.threads)}")
    elif e.low and use.on_gpu and memory < 0.6 and not _waits_for_disk(e):
        yield Bottleneck(SMALL_BATCH, f"{_busy(e)}, with {memory:.0%} of its memory in use", larger)
    one_thread = e.low and not use.on_gpu and use.threads > 1 and 0.7 <= use.cores <= 1.4
    if one_thread and not _waits_for_disk(e) and not _at_least(use.others, 0.25):
        evidence = f"{use.cores:.2f} cores busy on average of {use.threads:.3g} threads given"
        side_by_side = f"compute.max_parallel: {int(use.threads * use.parallel)} (units side by side, a thread each)"
        yield Bottleneck(ONE_THREAD, evidence, side_by_side if e.units > 1 else larger)


def _of_queue(e: Evidence) -> Iterator[Bottleneck]:
    """Waiting and restarts."""
    time = f"compute.slurm.phases.{e.phase}.time"
    if e.queued > max(60.0, e.use.seconds):
        evidence = f"waited {duration(e.queued)} in the queue for {duration(e.use.seconds)} of work"
        change = f"{time}, shorter (jobs that fit gaps start earlier); or partition, qos"
        yield Bottleneck(QUEUE, evidence, change)
    if e.restarts >= 3:
        evidence = f"restarted {e.restarts} times for {e.units} unit{'s' if e.units > 1 else ''}"
        yield Bottleneck(RESTARTS, evidence, f"{time}, longer" if e.slurm else "`mechstudy status` says why it ended")


def _at_least(value: float | None, bound: float) -> bool:
    return value is not None and value >= bound


def _waits_for_disk(e: Evidence) -> bool:
    return _at_least(e.use.wait_io, 0.15) and e.use.busy < 0.9 and (e.use.read or 0) + (e.use.write or 0) > 0


def _busy(e: Evidence) -> str:
    return f"{'GPU' if e.use.on_gpu else 'threads'} busy {e.use.busy:.0%} of the time, expected {e.expected}"
