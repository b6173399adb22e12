"""Running one unit: import its entry, give it its inputs, publish what it wrote, and say what went wrong."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from mechstudy.core.artifacts import Artifact, ArtifactStore, ArtifactWriter
from mechstudy.core.disk import disk_errors
from mechstudy.core.errors import MechstudyError
from mechstudy.core.memory import available_memory_bytes, total_memory_bytes
from mechstudy.core.progress import Progress
from mechstudy.core.runtime import Runtime, is_out_of_memory
from mechstudy.phases.unit import Unit

LOG = "log.txt"
_FEWEST_TOKENS = 64  # per batch; with less, memory is not what is wrong
_LOW_MEMORY_SHARE = 0.15  # of the machine's memory: below it, models kept loaded are let go


@dataclass(frozen=True)
class Options:
    """How units run. Nothing here changes what is computed.

    ``base`` is the study file's folder, from which a study's relative paths start; ``profile`` is a folder for
    torch profiler traces; ``resume`` gives a unit a checkpoint to start from.
    """

    device: str = "cpu"
    threads: int | None = None
    max_parallel: int = 1
    batch_tokens: int = 4096
    quota: int | None = None
    stage: str = "off"
    verify_reads: bool = False
    seed: int = 0
    base: Path = Path()
    profile: Path | None = None
    resume: Mapping[str, Path] = field(default_factory=dict)

    @property
    def total_threads(self) -> int:
        """Threads for all units together: as asked, else every core this process may use."""
        if self.threads is not None:
            return self.threads
        with suppress(AttributeError):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    @property
    def unit_threads(self) -> int:
        """Threads for one unit."""
        return max(1, self.total_threads // self.max_parallel)


@dataclass(frozen=True)
class Job:
    """One unit to run, with its inputs on disk: all a worker process needs to know."""

    unit: Unit
    id: str
    inputs: Mapping[str, tuple[str, str, str]]  # label -> phase, unit name, id
    run: Path
    store: Path
    options: Options
    quiet: bool = False  # no bars: several units run at once
    log: str | None = LOG  # in the run's folder; None: on the stream alone

    @property
    def checkpoint(self) -> Path | None:
        return self.options.resume.get(self.unit.name)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its seconds, and the error with its traceback where it failed."""

    name: str
    seconds: float
    peak_rss_bytes: int = 0
    folder: str = ""
    error: MechstudyError | None = None
    crash: str | None = None  # one line, for an error that is not the user's
    trace: str = ""

    @property
    def failed(self) -> bool:
        return self.error is not None or self.crash is not None


def perform(job: Job, cache: dict[Any, Any], stream: TextIO | None = None) -> Outcome:
    """Runs a job in this process. Every error but an interruption comes back in the outcome."""
    began = time.monotonic()
    name = job.unit.name
    try:
        artifact = _publish(job, cache, stream)
    except MechstudyError as error:
        return Outcome(name, time.monotonic() - began, error=error, trace=traceback.format_exc())
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        crash = f"{type(error).__name__}: {line}" if line else type(error).__name__
        return Outcome(name, time.monotonic() - began, crash=crash, trace=traceback.format_exc())
    manifest = artifact.manifest
    return Outcome(name, manifest.get("seconds", 0.0), manifest.get("peak_rss_bytes", 0), artifact.name)


def _publish(job: Job, cache: dict[Any, Any], stream: TextIO | None) -> Artifact:
    unit, options = job.unit, job.options
    store = ArtifactStore(job.store)
    inputs: dict[str, Artifact] = {}
    for label, (phase, source, id) in job.inputs.items():
        found = store.find(phase, source, id)
        if found is None:
            raise MechstudyError(
                f"the artifact of {source} is gone or damaged",
                where=str(store.folder(phase, source, id)),
                fix="run the same command again: it is then made anew",
            )
        inputs[label] = found
    entry = entry_of(unit)
    writer = store.writer(unit.phase, unit.name, job.id, version=unit.version, spec=unit.spec, inputs=inputs)
    if job.checkpoint is not None:
        place_checkpoint(job.checkpoint, writer)
    log_file = None if job.log is None else job.run / job.log
    progress = Progress(writer.scratch, phase=unit.phase, unit=unit.name, stream=stream, log_file=log_file)
    device = resolve_device(options.device)
    runtime = Runtime(
        device=device,
        threads=options.unit_threads,
        batch_tokens=options.batch_tokens,
        quota=options.quota,
        stage=options.stage,
        verify_reads=options.verify_reads,
        progress=progress,
        seed=options.seed,
        base=options.base,
        cache=cache,
        profile=options.profile is not None,
    )
    make_room(unit, cache, progress)
    _set_threads(options.unit_threads)
    with disk_errors(writer.path):
        _run_entry(entry, unit, inputs, writer, runtime, options)
    return writer.publish(runtime.info())


def _run_entry(
    entry: Callable[..., None],
    unit: Unit,
    inputs: Mapping[str, Artifact],
    writer: ArtifactWriter,
    runtime: Runtime,
    options: Options,
) -> None:
    """Runs the entry; when memory runs out although phases halve their batches, starts it with half of them."""
    while True:
        try:
            with _profiling(unit, runtime, options.profile):
                entry(unit.spec, inputs, writer, runtime)
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        runtime.cache.clear()
        _collect()
        if runtime.batch_tokens <= _FEWEST_TOKENS:
            raise MechstudyError(
                "not enough memory",
                where=unit.name,
                facts={"cause": reason, "available": f"{available_memory_bytes() / 2**30:.1f} GiB"},
                fix="set compute.max_parallel: 1, choose a smaller model, or use a machine with more memory",
            )
        runtime.batch_tokens = max(_FEWEST_TOKENS, runtime.batch_tokens // 2)
        runtime.progress.log(f"out of memory: starting again with {runtime.batch_tokens} tokens per batch ({reason})")


def entry_of(unit: Unit) -> Callable[..., None]:
    """The function that ``module:function`` names."""
    module, _, function = unit.entry.partition(":")
    found: Callable[..., None] = getattr(importlib.import_module(module), function)
    return found


def resolve_device(device: str) -> str:
    """``auto`` is CUDA where there is one, else the CPU; a device that is not there is refused."""
    if device == "cpu" or (device == "auto" and not _may_have_gpu()):
        return "cpu"
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise MechstudyError(f"{device!r} is no device", fix="auto, cpu, cuda or cuda:1") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise MechstudyError(
            f"there is no device {device}",
            facts={"CUDA devices": str(torch.cuda.device_count())},
            fix="compute.device: auto, or --device cpu",
        )
    return device


def _may_have_gpu() -> bool:
    """False where no driver of a GPU is to be seen, so that torch need not be imported to ask it."""
    import shutil

    devices = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
    return any(Path(device).exists() for device in devices) or shutil.which("nvidia-smi") is not None


def make_room(unit: Unit, cache: dict[Any, Any], progress: Progress) -> None:
    """Lets go of the models kept loaded when memory is short for this unit."""
    if not cache:
        return
    available = available_memory_bytes()
    needed = max(unit.estimate.bytes_in_memory, int(_LOW_MEMORY_SHARE * total_memory_bytes()))
    if available < needed:
        progress.log(f"{available / 2**30:.1f} GiB of memory left: models kept loaded are freed")
        cache.clear()
        _collect()


def place_checkpoint(source: Path, writer: ArtifactWriter) -> None:
    """Copies a checkpoint file, or the one in a folder, to where a training unit looks for its own.

    Raises:
        MechstudyError: there is no checkpoint, or several.
    """
    import shutil

    from mechstudy.core.disk import atomic_path

    with atomic_path(writer.scratch / CHECKPOINT) as temporary:
        shutil.copyfile(find_checkpoint(source), temporary)


CHECKPOINT = "checkpoint.safetensors"


def find_checkpoint(source: Path) -> Path:
    """The checkpoint file that a path names: itself, or the only one in or below that folder."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise MechstudyError("no such checkpoint", where=str(source), fix="name a file or a folder that holds one")
    found = sorted(source.rglob(CHECKPOINT)) or sorted(source.rglob("*.checkpoint"))
    if len(found) != 1:
        raise MechstudyError(
            "the folder holds no checkpoint" if not found else f"the folder holds {len(found)} checkpoints",
            where=str(source),
            facts={"found": "\n".join(str(path.relative_to(source)) for path in found)} if found else None,
            fix="name the file itself",
        )
    return found[0]


def _profiling(unit: Unit, runtime: Runtime, folder: Path | None) -> Any:
    if folder is None:
        return nullcontext()
    from mechstudy.execution.profile import profiled

    return profiled(unit.name, runtime, folder)


def _set_threads(threads: int) -> None:
    """Sets torch's threads where torch is loaded; elsewhere it reads OMP_NUM_THREADS when it is."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _collect() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
