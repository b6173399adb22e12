"""What is recorded while a unit runs: its use of the machine, and on request profiler traces and memory snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from mechstudy.machine.runtime import Runtime
from mechstudy.monitoring.memory_snapshot import on_out_of_memory, snapshotted
from mechstudy.monitoring.profiler import profiled
from mechstudy.monitoring.record import usage_file
from mechstudy.monitoring.sampler import monitored

PROFILE = "profile"  # folder in the run's: traces, tables, memory snapshots


@dataclass(frozen=True)
class Instruments:
    """The instruments of one unit.

    Attributes:
        artifact: the folder its artifact will have; usage is recorded beside it.
        threads: of all processes of the unit.
        resumes: another process began the artifact.
        run: the run's folder.
    """

    unit: str
    phase: str
    artifact: Path
    runtime: Runtime
    threads: int
    resumes: bool
    run: Path

    def sampled(self) -> AbstractContextManager[None]:
        """Samples what the unit uses, unless the study turns that off."""
        options = self.runtime.options
        if not options.monitor:
            return nullcontext()
        return monitored(
            usage_file(self.artifact),
            unit=self.unit,
            phase=self.phase,
            device=self.runtime.device,
            threads=self.threads,
            parallel=options.max_parallel,
            n_ranks=self.runtime.group.size,
            seconds=options.monitor_seconds,
            expected=options.expected_usage.get(self.phase),
            resumes=self.resumes,
            say=self.runtime.progress.log,
        )

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Torch's profiler and memory snapshots, where they are requested."""
        options = self.runtime.options
        with ExitStack() as stack:
            if options.snapshot_folder is not None:
                stack.enter_context(snapshotted(self.unit, self.runtime, options.snapshot_folder))
            if options.trace_folder is not None:
                stack.enter_context(profiled(self.unit, self.runtime, options.trace_folder))
            yield

    def out_of_memory(self, reason: str) -> None:
        """Writes what is in memory, while the tensors of the failed work still are."""
        folder = self.runtime.options.snapshot_folder or self.run / PROFILE
        on_out_of_memory(self.unit, self.runtime, folder, reason)
