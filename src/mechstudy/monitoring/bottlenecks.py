"""A run's usage by phase, and its bottlenecks: rules that read the measured use, each with evidence and remedy.

`CAUSES` are in the order in which one hides others: a machine that swaps looks idle, whatever else is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechstudy.core.progress import duration
from mechstudy.core.sizes import human
from mechstudy.monitoring.expected_usage import ON_CPU, UNJUDGED, Expected, PhaseProfile
from mechstudy.monitoring.record import Session
from mechstudy.monitoring.summary import SHORT, Use, use_of


@dataclass(frozen=True)
class PhaseUsage:
    """What a phase used in all and unit by unit, with what the study and the queue say of it.

    ``profile`` is what is expected of it, ``batch_is`` its batch size; ``gpus_here`` counts the machine's
    GPUs, used or not; ``queued`` is the seconds its jobs waited; ``slurm`` says whether it ran as jobs;
    ``own_range`` is ``compute.expected_usage`` as it was when the phase ran: the busy range in per cent.
    """

    phase: str
    use: Use
    units: Mapping[str, Sequence[Session]]
    profile: PhaseProfile = UNJUDGED
    batch_is: int | None = None
    source: str | None = None
    own_range: tuple[float, float] | None = None
    gpus_here: int = 0
    queued: float = 0.0
    restarts: int = 0
    slurm: bool = False

    @property
    def expected(self) -> Expected | None:
        """How busy the phase should be; None for those that are not judged."""
        on_gpu, usual = self.use.on_gpu, self.profile.gpu
        of = "the GPU" if on_gpu else "its threads"
        if self.own_range is not None:
            return Expected(self.own_range[0] / 100, self.own_range[1] / 100, of)
        return None if usual is None else Expected(*(usual if on_gpu else ON_CPU), of)

    @property
    def low(self) -> bool:
        """Whether it was less busy than it should be."""
        return self.expected is not None and self.use.busy < self.expected.low

    @property
    def verdict(self) -> str:
        """``as expected``, ``low``, ``above``, or ``not judged`` (short, or without a range)."""
        if self.expected is None or self.use.seconds < SHORT:
            return "not judged"
        return "low" if self.low else "above" if self.use.busy > self.expected.high else "as expected"

    @property
    def found(self) -> list[Bottleneck]:
        """What held it up."""
        return bottlenecks(self)


def by_phase(
    sessions: Iterable[Sequence[Session]],
    study: Mapping[str, Any],
    profiles: Mapping[str, PhaseProfile],
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[PhaseUsage]:
    """The usage of each phase, from every unit's sessions: what the report, `usage` and `doctor` show.

    Args:
        study: as plain JSON; fields that it lacks (a report's has no ``compute``) are skipped.
        profiles: what is expected of each phase, in the order of phases.
        facts: phase -> more fields of `PhaseUsage` (``queued``, ``restarts``, ``gpus_here``, ``slurm``).
    """
    grouped: dict[str, dict[str, Sequence[Session]]] = {}
    for unit in sessions:
        if unit:
            grouped.setdefault(unit[-1].phase, {})[unit[-1].unit] = unit
    usages = []
    for phase in sorted(grouped, key=lambda name: [*profiles, name].index(name)):
        units, profile = grouped[phase], profiles.get(phase, UNJUDGED)
        use = use_of(session for unit in units.values() for session in unit)
        if use is None:
            continue
        last = max((unit[-1] for unit in units.values()), key=lambda session: session.started)
        batch, source = _at(study, *profile.batch.split(".")), _at(study, "dictionaries", "source")
        more = (facts or {}).get(phase, {})
        usages.append(PhaseUsage(phase, use, units, profile, batch, source, last.expected, **more))
    return usages


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


def bottlenecks(e: PhaseUsage) -> list[Bottleneck]:
    """Every cause that the numbers show, the most important first. Short phases are judged only by their queue."""
    causes = list(_of_queue(e))
    if e.use.seconds >= SHORT:
        causes += [*_of_machine(e), *_of_data(e), *_of_work(e)]
        if e.low and not causes:
            change = f"`mechstudy {e.profile.command} STUDY --profile` shows where the time goes"
            causes.append(Bottleneck(UNEXPLAINED, _busy(e), change))
    return sorted(causes, key=lambda cause: CAUSES.index(cause.name))


def _of_machine(e: PhaseUsage) -> Iterator[Bottleneck]:
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


def _of_data(e: PhaseUsage) -> Iterator[Bottleneck]:
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


def _of_work(e: PhaseUsage) -> Iterator[Bottleneck]:
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
        yield Bottleneck(ONE_THREAD, evidence, side_by_side if len(e.units) > 1 else larger)


def _of_queue(e: PhaseUsage) -> Iterator[Bottleneck]:
    """Waiting and restarts."""
    time = f"compute.slurm.phases.{e.phase}.time"
    if e.queued > max(60.0, e.use.seconds):
        evidence = f"waited {duration(e.queued)} in the queue for {duration(e.use.seconds)} of work"
        change = f"{time}, shorter (jobs that fit gaps start earlier); or partition, qos"
        yield Bottleneck(QUEUE, evidence, change)
    if e.restarts >= 3:
        evidence = f"restarted {e.restarts} times for {len(e.units)} unit{'s' if len(e.units) > 1 else ''}"
        yield Bottleneck(RESTARTS, evidence, f"{time}, longer" if e.slurm else "`mechstudy status` says why it ended")


def _at(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _at_least(value: float | None, bound: float) -> bool:
    return value is not None and value >= bound


def _waits_for_disk(e: PhaseUsage) -> bool:
    return _at_least(e.use.wait_io, 0.15) and e.use.busy < 0.9 and (e.use.read or 0) + (e.use.write or 0) > 0


def _busy(e: PhaseUsage) -> str:
    return f"{'GPU' if e.use.on_gpu else 'threads'} busy {e.use.busy:.0%} of the time, expected {e.expected}"
