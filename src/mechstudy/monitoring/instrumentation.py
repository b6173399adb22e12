"""What is recorded while a unit runs: its use of the machine, and on request profiler traces and memory snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

from mechstudy.machine.runtime import Runtime
from mechstudy.monitoring.memory_snapshot import Course, live_tensors, snapshotted, write_snapshot
from mechstudy.monitoring.profiler import profiled
from mechstudy.monitoring.record import Session, usage_file
from mechstudy.monitoring.sampler import monitored

PROFILE = "profile"  # folder in the run's: traces, tables, memory snapshots


def sampled(
    unit: str, phase: str, artifact: Path, runtime: Runtime, threads: int, *, resumes: bool
) -> AbstractContextManager[None]:
    """Samples what a unit uses, unless the study turns that off, beside the folder that its artifact will have.

    ``threads`` are those of all its processes; ``resumes`` says that another process began the artifact.
    """
    options = runtime.options
    if not options.monitor:
        return nullcontext()
    session = Session(
        unit,
        phase,
        device=runtime.device,
        threads=threads,
        parallel=options.max_parallel,
        seconds=options.monitor_seconds,
        expected=options.expected_usage.get(phase),
    )
    n, say = runtime.group.size, runtime.progress.log
    return monitored(usage_file(artifact), session, n_ranks=n, resumes=resumes, say=say)


@contextmanager
def recorded(unit: str, runtime: Runtime) -> Iterator[None]:
    """Torch's profiler and memory snapshots, where they are requested."""
    options = runtime.options
    with ExitStack() as stack:
        if options.snapshot_folder is not None:
            stack.enter_context(snapshotted(unit, runtime, options.snapshot_folder))
        if options.trace_folder is not None:
            stack.enter_context(profiled(unit, runtime, options.trace_folder))
        yield


def record_out_of_memory(unit: str, runtime: Runtime, run: Path, reason: str) -> None:
    """Writes what is in memory, while the tensors of the failed work still are. Never raises."""
    folder, log = runtime.options.snapshot_folder or run / PROFILE, runtime.progress.log
    try:
        now = Course(tensors=live_tensors())
        files = write_snapshot(unit, runtime.device, folder, now, f"memory ran out: {reason}")
        log(f"out of memory; what was in it: {' and '.join(map(str, files))}")
    except Exception as error:
        log(f"out of memory, and no snapshot of it: {type(error).__name__}: {error}")
