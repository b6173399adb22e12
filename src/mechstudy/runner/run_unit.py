"""Runs one unit in this process: gives its phase typed inputs, publishes its output, and returns its errors."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path, disk_errors
from mechstudy.core.progress import Progress
from mechstudy.machine.devices import device_of, exact_products, free_memory, resolve_device, set_threads
from mechstudy.machine.memory import available_memory_bytes, total_memory_bytes
from mechstudy.machine.runtime import Runtime, current_fitting, fitting, is_out_of_memory
from mechstudy.monitoring.instrumentation import record_out_of_memory, recorded, sampled
from mechstudy.runner.batch_size_cache import recalled_batch, remember_batch
from mechstudy.runner.job import Job, Outcome, crash_line
from mechstudy.runner.processes.leader import Leader, n_on_this_node, n_processes
from mechstudy.runner.processes.progress import LeaderProgress
from mechstudy.runner.unit_state import missing_inputs
from mechstudy.store.artifact import Artifact
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.study.unit import Unit

_FEWEST_TOKENS = 64  # per batch; with less, memory is not what is wrong
_LOW_MEMORY_SHARE = 0.15  # of the machine's memory: below it, models kept loaded are freed
CHECKPOINT = "checkpoint.safetensors"


def run_unit(job: Job, cache: dict[Any, Any], stream: TextIO | None = None) -> Outcome:
    """Runs a job in this process. Every error but an interruption is returned in the outcome.

    Args:
        cache: keeps models loaded between units of one process.
        stream: receives messages; standard error if None.
    """
    began, name = time.monotonic(), job.unit.name
    try:
        artifact = _publish(job, cache, stream)
    except MechstudyError as error:
        return Outcome(name, time.monotonic() - began, error=error, trace=traceback.format_exc())
    except Exception as error:
        return Outcome(name, time.monotonic() - began, crash=crash_line(error), trace=traceback.format_exc())
    manifest = artifact.manifest
    return Outcome(name, manifest.get("seconds", 0.0), manifest.get("peak_rss_bytes", 0))


def _publish(job: Job, cache: dict[Any, Any], stream: TextIO | None) -> Artifact:
    unit, phase = job.unit, job.unit.phase
    artifacts = job.load_inputs()
    writer = job.writer(artifacts)
    if (checkpoint := job.options.resume.get(unit.name)) is not None:
        _place_checkpoint(checkpoint, writer)
    n = n_processes(unit, job.options)
    threads = max(1, job.options.unit_threads // n_on_this_node(n))
    device, asked = resolve_device(job.options.device), job.options.batch_tokens
    if (tokens := recalled_batch(job, device)) is not None:
        job = replace(job, options=job.options.replace(batch_tokens=tokens))
    runtime = _runtime(job, writer, n, threads, device, cache, stream)
    if phase.optional_inputs:
        runtime.absent = missing_inputs(job.run, unit, artifacts)
    make_room(unit, cache, runtime.progress)
    set_threads(threads)
    exact_products()
    if tokens is not None:
        runtime.progress.log(
            f"{tokens} tokens per batch: more did not fit in memory before (compute.batch_tokens: {asked})"
        )
    sampling = sampled(unit.name, phase.name, writer.final, runtime, threads * n, resumes=writer.resumes)
    with disk_errors(writer.path), sampling, fitting() as learned:
        if tokens is not None:
            learned.learn(tokens, 1)
        _run_phase(job, artifacts, writer, runtime)
    fits = min(runtime.batch_tokens, learned.tokens or runtime.batch_tokens)
    if fits < job.options.batch_tokens:
        remember_batch(job, device, fits, asked)
    return writer.publish(runtime.info())


def _runtime(
    job: Job,
    writer: ArtifactWriter,
    n: int,
    threads: int,
    device: str,
    cache: dict[Any, Any],
    stream: TextIO | None,
) -> Runtime:
    """The runtime of a phase that runs alone, or leads ``n`` processes."""
    about: dict[str, Any] = {
        "phase": job.unit.phase.name, "unit": job.unit.name, "stream": stream, "log_file": job.log_file,
    }  # fmt: skip
    tokens = job.options.batch_tokens
    if n == 1:
        return Runtime(job.options, device, threads, tokens, Progress(writer.scratch, **about), cache)
    progress = LeaderProgress(writer.scratch, **about)
    leader = Leader(job, n, threads, device, progress, cache, writer.scratch)
    return Runtime(job.options, device_of(device, 0), threads, tokens, progress, cache, group=leader)


def _run_phase(job: Job, artifacts: Mapping[str, Artifact], writer: ArtifactWriter, runtime: Runtime) -> None:
    """Runs the phase; when memory runs out although phases halve their batches, starts it again with half of them."""
    phase = job.unit.phase
    inputs = phase.collect(job.unit, artifacts)
    while True:
        try:
            with recorded(job.unit.name, runtime):
                phase.run(job.unit.spec, inputs, writer, runtime)
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            record_out_of_memory(job.unit.name, runtime, job.run, reason)
        runtime.cache.clear()
        free_memory()
        if runtime.batch_tokens <= _FEWEST_TOKENS:
            raise MechstudyError(
                "not enough memory",
                where=job.unit.name,
                facts={"cause": reason, "available": f"{available_memory_bytes() / 2**30:.1f} GiB"},
                fix="set compute.max_parallel: 1, choose a smaller model, or use a machine with more memory",
            )
        runtime.batch_tokens = max(_FEWEST_TOKENS, runtime.batch_tokens // 2)
        runtime.group.use_batch(runtime.batch_tokens)
        current_fitting().learn(runtime.batch_tokens, 1)  # also for batches whose division must stay
        runtime.progress.log(f"out of memory: starting again with {runtime.batch_tokens} tokens per batch ({reason})")


def make_room(unit: Unit, cache: dict[Any, Any], progress: Progress) -> None:
    """Frees the models kept loaded when memory is short for this unit."""
    if not cache:
        return
    available = available_memory_bytes()
    needed = max(unit.estimate.bytes_in_memory, int(_LOW_MEMORY_SHARE * total_memory_bytes()))
    if available < needed:
        progress.log(f"{available / 2**30:.1f} GiB of memory left: models kept loaded are freed")
        cache.clear()
        free_memory()


def _place_checkpoint(source: Path, writer: ArtifactWriter) -> None:
    """Copies a checkpoint to where a training unit looks for its own."""
    with atomic_path(writer.scratch / CHECKPOINT) as temporary:
        shutil.copyfile(find_checkpoint(source), temporary)


def find_checkpoint(source: Path) -> Path:
    """The checkpoint file that a path names: itself, or the only one in or below that folder.

    Raises:
        MechstudyError: there is none, or several.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise MechstudyError("no such checkpoint", where=str(source), fix="name a file or a folder that holds one")
    files = sorted(source.rglob(CHECKPOINT)) or sorted(source.rglob("*.checkpoint"))
    if len(files) != 1:
        raise MechstudyError(
            f"the folder holds {len(files)} checkpoints" if files else "the folder holds no checkpoint",
            where=str(source),
            facts={"found": "\n".join(str(path.relative_to(source)) for path in files)} if files else None,
            fix="name the file itself",
        )
    return files[0]
