"""One process' share of a unit."""

from __future__ import annotations

import time
import traceback
from contextlib import ExitStack
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.signals import Stopped
from mechstudy.machine.devices import device_of, exact_products, set_threads
from mechstudy.machine.memory import peak_rss_bytes, reset_peak_rss
from mechstudy.machine.runtime import ProcessGroup, Runtime, is_out_of_memory
from mechstudy.runner.job import crash_line
from mechstudy.runner.processes.meeting import joined
from mechstudy.runner.processes.messages import Ended, Task
from mechstudy.runner.processes.progress import WorkerProgress

FOLDER = "ranks"  # in the scratch folder: progress of every process but the leader


def run_share(task: Task, cache: dict[Any, Any], local_rank: int) -> Ended:
    """Runs a share in this process. Every error but an interruption is part of the result."""
    began = time.monotonic()
    reset_peak_rss()
    try:
        _share(task, cache, local_rank)
    except Stopped:
        return Ended(task.rank, "stopped", time.monotonic() - began)
    except MechstudyError as error:
        parts = {"what": error.what, "where": error.where, "facts": error.facts, "fix": error.fix}
        trace = traceback.format_exc()
        return Ended(task.rank, "failed", time.monotonic() - began, error=parts, trace=trace)
    except Exception as error:
        return Ended(
            task.rank,
            "failed",
            time.monotonic() - began,
            crash=crash_line(error),
            out_of_memory=is_out_of_memory(error),
            trace=traceback.format_exc(),
        )
    return Ended(task.rank, "done", time.monotonic() - began, peak_rss_bytes())


def _share(task: Task, cache: dict[Any, Any], local_rank: int) -> None:
    job, unit, phase = task.job, task.job.unit, task.job.unit.phase
    artifacts = job.load_inputs()
    writer = job.writer(artifacts, helps=True)
    progress = WorkerProgress(
        writer.scratch / FOLDER / str(task.rank),
        phase=phase.name,
        unit=f"{unit.name} (rank {task.rank})",
        log_file=job.log_file,
    )
    set_threads(task.threads)
    exact_products()
    device = device_of(job.options.device, local_rank)
    group = ProcessGroup(task.rank, task.size, task.broadcast)
    runtime = Runtime(job.options, device, task.threads, job.options.batch_tokens, progress, cache, group=group)
    with ExitStack() as stack:
        if task.group is not None:
            stack.enter_context(joined(task.group, task.rank, task.size, device))
        phase.share(unit.spec, phase.collect(unit, artifacts), writer, runtime)
