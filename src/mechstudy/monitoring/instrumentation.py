"""What runs beside a job's entry: the sampler always, the profiler and the watch of memory on request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

from mechstudy.machine.runtime import Runtime

if TYPE_CHECKING:
    from mechstudy.runner.run_unit import Job
    from mechstudy.store.artifacts import ArtifactWriter

PROFILE = "profile"  # folder in the run's: traces, tables, snapshots of memory


def monitoring(job: Job, writer: ArtifactWriter, runtime: Runtime, threads: int) -> AbstractContextManager[None]:
    """The sampler, unless the study says no. ``threads``: of all processes of the unit."""
    if not job.options.monitor:
        return nullcontext()
    from mechstudy.monitoring.record import usage_file
    from mechstudy.monitoring.sampler import monitored

    return monitored(
        usage_file(writer.final),
        unit=job.unit.name,
        phase=job.unit.phase,
        device=runtime.device,
        threads=threads,
        parallel=job.options.max_parallel,
        n_ranks=runtime.ranks.size,
        seconds=job.options.monitor_seconds,
        expected=job.options.expected_usage.get(job.unit.phase),
        resumes=writer.resumes,
        say=runtime.progress.log,
    )


@contextmanager
def recording(job: Job, runtime: Runtime) -> Iterator[None]:
    """torch's profiler and a snapshot of memory, where they were asked for."""
    with ExitStack() as stack:
        if job.options.snapshots is not None:
            from mechstudy.monitoring.memory_snapshot import snapshotted

            stack.enter_context(snapshotted(job.unit.name, runtime, job.options.snapshots))
        if job.options.profile is not None:
            from mechstudy.monitoring.profiler import profiled

            stack.enter_context(profiled(job.unit.name, runtime, job.options.profile))
        yield


def look_at_memory(job: Job, runtime: Runtime, reason: str) -> None:
    """When memory has run out: writes what is in it, while what failed still is."""
    from mechstudy.monitoring.memory_snapshot import on_out_of_memory

    on_out_of_memory(job.unit.name, runtime, job.options.snapshots or job.run / PROFILE, reason)
