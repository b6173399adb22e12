"""Running one unit: import its entry, give it its inputs, publish what it wrote, and say what went wrong."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import disk_errors
from mechstudy.core.progress import Progress
from mechstudy.machine import batch_fitting as fitting
from mechstudy.machine.memory import available_memory_bytes, total_memory_bytes
from mechstudy.machine.numerics import exact_products
from mechstudy.machine.runtime import Runtime, is_out_of_memory
from mechstudy.monitoring.instrumentation import look_at_memory, monitoring, recording
from mechstudy.runner.batch_size_cache import remember, remembered
from mechstudy.runner.missing_inputs import absent_inputs
from mechstudy.store.artifacts import Artifact, ArtifactStore, ArtifactWriter
from mechstudy.study.unit import Unit

if TYPE_CHECKING:
    from mechstudy.runner.processes.leader import Leader

LOG = "log.txt"
_FEWEST_TOKENS = 64  # per batch; with less, memory is not what is wrong
_LOW_MEMORY_SHARE = 0.15  # of the machine's memory: below it, models kept loaded are let go


@dataclass(frozen=True)
class Options:
    """How units run. Nothing here changes what is computed.

    ``base`` is the study file's folder, from which a study's relative paths start; ``profile`` is a folder for
    torch profiler traces, ``snapshots`` one for what is in memory; with ``monitor``, what units use is written beside
    their artifacts every ``monitor_seconds``; ``resume`` gives a unit a checkpoint to start from; ``world_size`` is
    how many processes share a unit (``auto``: `ranks.leader.world_size`); ``by_unit`` has fields of units that run
    otherwise than the rest.
    """

    device: str = "cpu"
    threads: int | None = None
    max_parallel: int = 1
    world_size: int | Literal["auto"] = "auto"
    batch_tokens: int = 4096
    quota: int | None = None
    stage: str = "off"
    verify_reads: bool = False
    checkpointing: str = "auto"
    tf32: bool = False
    compile: str = "off"
    stripe: int | str = "off"
    seed: int = 0
    base: Path = Path()
    profile: Path | None = None
    snapshots: Path | None = None
    monitor: bool = True
    monitor_seconds: float = 1.0
    expected_usage: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    resume: Mapping[str, Path] = field(default_factory=dict)
    by_unit: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, unit: str) -> Options:
        """How this unit runs."""
        return replace(self, **self.by_unit[unit]) if unit in self.by_unit else self

    def as_json(self) -> dict[str, Any]:
        """All of it but ``resume`` and ``by_unit``, which are of one process and its units."""
        kept = [item.name for item in fields(self) if item.name not in ("resume", "by_unit")]
        values = {name: getattr(self, name) for name in kept}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Options:
        paths = {name: Path(found[name]) for name in ("base", "profile", "snapshots") if found.get(name)}
        return cls(**{**found, **paths})

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
    inputs = inputs_of(store, job.inputs)
    entry = entry_of(unit)
    writer = store.writer(unit.phase, unit.name, job.id, version=unit.version, spec=unit.spec, inputs=inputs)
    if job.checkpoint is not None:
        place_checkpoint(job.checkpoint, writer)
    n_ranks, threads = _ranks(unit, options)
    log_file = None if job.log is None else job.run / job.log
    told: dict[str, Any] = {"phase": unit.phase, "unit": unit.name, "stream": stream, "log_file": log_file}
    device, asked = resolve_device(options.device), options.batch_tokens
    if (tokens := remembered(job, device)) is not None:
        options = replace(options, batch_tokens=tokens)
        job = replace(job, options=options)
    if n_ranks == 1:
        progress = Progress(writer.scratch, **told)
        runtime = runtime_of(options, device, threads, progress, cache)
    else:
        leader = _leader(job, n_ranks, threads, device, cache, writer, told)
        progress = leader.progress
        runtime = runtime_of(options, device_of(device, 0), threads, progress, cache)
        runtime.ranks = leader
    runtime.absent = absent_inputs(job.run, unit, inputs) if unit.optional_inputs else ()
    make_room(unit, cache, progress)
    set_threads(threads)
    exact_products()
    if tokens is not None:
        progress.log(f"{tokens} tokens per batch: more did not fit in memory before (compute.batch_tokens: {asked})")
    with disk_errors(writer.path), monitoring(job, writer, runtime, threads * n_ranks), fitting.fitting() as learned:
        if tokens is not None:
            learned.learn(tokens, 1)
        _run_entry(entry, job, inputs, writer, runtime)
    fits = min(runtime.batch_tokens, learned.tokens or runtime.batch_tokens)
    if fits < options.batch_tokens:
        remember(job, device, fits, asked)
    return writer.publish(runtime.info())


def inputs_of(store: ArtifactStore, keys: Mapping[str, tuple[str, str, str]]) -> dict[str, Artifact]:
    """A unit's inputs by label.

    Raises:
        MechstudyError: one of them is not there.
    """
    inputs: dict[str, Artifact] = {}
    for label, (phase, source, id) in keys.items():
        found = store.find(phase, source, id)
        if found is None:
            raise MechstudyError(
                f"the artifact of {source} is gone or damaged",
                where=str(store.folder(phase, source, id)),
                fix="run the same command again: it is then made anew",
            )
        inputs[label] = found
    return inputs


def runtime_of(options: Options, device: str, threads: int, progress: Progress, cache: dict[Any, Any]) -> Runtime:
    """What a phase is given of the options."""
    return Runtime(
        device=device,
        threads=threads,
        batch_tokens=options.batch_tokens,
        quota=options.quota,
        stage=options.stage,
        verify_reads=options.verify_reads,
        checkpointing=options.checkpointing,
        tf32=options.tf32,
        compile=options.compile,
        stripe=options.stripe,
        progress=progress,
        seed=options.seed,
        base=options.base,
        cache=cache,
        profile=options.profile is not None,
    )


def _ranks(unit: Unit, options: Options) -> tuple[int, int]:
    """In how many processes a unit runs, and the threads of each."""
    from mechstudy.runner.processes.leader import n_on_this_node, n_ranks

    n = n_ranks(unit, options)
    return n, max(1, options.unit_threads // n_on_this_node(n))


def _leader(
    job: Job, n: int, threads: int, device: str, cache: dict[Any, Any], writer: ArtifactWriter, told: dict[str, Any]
) -> Leader:
    from mechstudy.runner.processes.leader import Leader
    from mechstudy.runner.processes.progress import LeaderProgress

    return Leader(job, n, threads, device, LeaderProgress(writer.scratch, **told), cache, writer.scratch)


def _run_entry(
    entry: Callable[..., None],
    job: Job,
    inputs: Mapping[str, Artifact],
    writer: ArtifactWriter,
    runtime: Runtime,
) -> None:
    """Runs the entry; when memory runs out although phases halve their batches, starts it with half of them."""
    while True:
        try:
            with recording(job, runtime):
                entry(job.unit.spec, inputs, writer, runtime)
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            look_at_memory(job, runtime, reason)
        runtime.cache.clear()
        _collect()
        if runtime.batch_tokens <= _FEWEST_TOKENS:
            raise MechstudyError(
                "not enough memory",
                where=job.unit.name,
                facts={"cause": reason, "available": f"{available_memory_bytes() / 2**30:.1f} GiB"},
                fix="set compute.max_parallel: 1, choose a smaller model, or use a machine with more memory",
            )
        runtime.batch_tokens = max(_FEWEST_TOKENS, runtime.batch_tokens // 2)
        runtime.ranks.use_batch(runtime.batch_tokens)
        fitting.current().learn(runtime.batch_tokens, 1)  # also for batches that must be cut as they were
        runtime.progress.log(f"out of memory: starting again with {runtime.batch_tokens} tokens per batch ({reason})")


def entry_of(unit: Unit) -> Callable[..., None]:
    """The function that makes the unit's artifact."""
    return function_named(unit.entry)


def function_named(name: str) -> Callable[..., None]:
    """The function that ``module:function`` names."""
    module, _, function = name.partition(":")
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


def device_of(device: str, local_rank: int) -> str:
    """The device of one of several ranks of this machine: GPU by GPU where there are several and none was named."""
    device = resolve_device(device)
    if device != "cuda":
        return device
    import torch

    if (n := torch.cuda.device_count()) > 1:
        device = f"cuda:{local_rank % n}"
        torch.cuda.set_device(device)
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

    from mechstudy.core.files import atomic_path

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


def set_threads(threads: int) -> None:
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
