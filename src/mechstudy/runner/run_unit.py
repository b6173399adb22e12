"""Runs one unit in this process: gives its phase typed inputs, publishes its output, and returns its errors.

Batch sizes that fitted in memory are kept in ``<run>/batches/<phase>-<key>.json``, one file for each kind of unit,
model and device, so that later units of a kind start with them. Never part of an artifact or an id, and safe to delete.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path, disk_errors
from mechstudy.core.jsonio import canonical_json, read_json, write_json_atomic
from mechstudy.core.progress import Progress
from mechstudy.machine.devices import device_of, exact_products, free_memory, resolve_device, set_threads
from mechstudy.machine.memory import available_memory_bytes, memory_limit_bytes, total_memory_bytes
from mechstudy.machine.runtime import Runtime, current_fitting, fitting, is_out_of_memory
from mechstudy.monitoring.instrumentation import record_out_of_memory, recorded, sampled
from mechstudy.runner.job import Job, Outcome, crash_line
from mechstudy.runner.processes.leader import Leader, LeaderProgress, n_on_this_node, n_processes
from mechstudy.runner.unit_state import missing_inputs
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.store.artifacts import Artifact
from mechstudy.store.manifest import slug
from mechstudy.study.unit import Unit

BATCHES = "batches"
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
    _refuse_changed_files(job)
    writer = job.writer(artifacts)
    if (checkpoint := job.options.resume.get(unit.name)) is not None:
        with atomic_path(writer.scratch / CHECKPOINT) as temporary:  # where a training unit looks for its own
            shutil.copyfile(find_checkpoint(checkpoint), temporary)
    n = n_processes(unit, job.options)
    threads = max(1, job.options.unit_threads // n_on_this_node(n))
    device = resolve_device(job.options.device) if phase.uses_device else "cpu"
    asked = job.options.batch_tokens
    if (tokens := _recalled_batch(job, device)) is not None:
        job = replace(job, options=job.options.replace(batch_tokens=tokens))
    runtime = _runtime(job, writer, n, threads, device, cache, stream)
    if phase.optional_inputs:
        runtime.absent = missing_inputs(job.run, unit, artifacts)
        runtime.run_folder = job.run
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
        _remember_batch(job, device, fits, asked)
    _refuse_changed_files(job)  # while it ran
    return writer.publish(runtime.info())


def _refuse_changed_files(job: Job) -> None:
    """Refuses a unit whose files of the user are not those of its spec: its id would be wrong."""
    if (changed := job.unit.phase.changed(job.unit.spec, job.options.base)) is not None:
        raise MechstudyError(
            f"{changed} has changed since the study was opened",
            where=job.unit.name,
            fix="the same command again, with what is there now; on Slurm `mechstudy cancel`, then `mechstudy resume`",
        )


def _runtime(
    job: Job, writer: ArtifactWriter, n: int, threads: int, device: str, cache: dict[Any, Any], stream: TextIO | None
) -> Runtime:
    """The runtime of a phase that runs alone, or leads ``n`` processes."""
    kind, name, tokens = Progress if n == 1 else LeaderProgress, job.unit.name, job.options.batch_tokens
    progress = kind(writer.scratch, phase=job.unit.phase.name, unit=name, stream=stream, log_file=job.log_file)
    if not isinstance(progress, LeaderProgress):
        return Runtime(job.options, device, threads, tokens, progress, cache)
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


def _recalled_batch(job: Job, device: str) -> int | None:
    """Tokens per batch to which an earlier unit of this kind was reduced; None where none was.

    Also None where fewer tokens were asked for then than now, and for another device or another amount of memory.
    """
    with suppress(MechstudyError, KeyError, TypeError, ValueError, OSError):
        record = read_json(_batch_file(job, _batch_key(job, device)))
        tokens, asked = int(record["batch_tokens"]), int(record["asked"])
        if 0 < tokens < job.options.batch_tokens <= asked:
            return tokens
    return None


def _remember_batch(job: Job, device: str, tokens: int, asked: int) -> None:
    """Keeps the tokens that fit where ``asked`` did not. A folder that cannot be written is no reason to fail."""
    with suppress(MechstudyError, OSError):
        key = _batch_key(job, device)
        write_json_atomic(_batch_file(job, key), {**key, "batch_tokens": tokens, "asked": asked})


def _batch_key(job: Job, device: str) -> dict[str, str | None]:
    """The kind of unit, the id of the model that it runs, and the device by name and memory."""
    models = [job.inputs[item.unit][2] for item in job.unit.inputs if item.role == "model" and item.unit in job.inputs]
    name, memory = device, memory_limit_bytes()
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None:
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    model = models[0] if models else None
    return {"unit": job.unit.phase.kind, "model": model, "device": f"{name}, {memory >> 30} GiB"}


def _batch_file(job: Job, key: Mapping[str, str | None]) -> Path:
    digest = hashlib.sha256(canonical_json(list(key.values())).encode()).hexdigest()[:12]
    return job.run / BATCHES / f"{slug(job.unit.phase.name)}-{digest}.json"
