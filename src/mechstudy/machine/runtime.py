"""What a phase runs with, and back-off when memory runs out."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.machine import batch_fitting
from mechstudy.machine.devices import free_memory
from mechstudy.machine.memory import available_memory_bytes
from mechstudy.machine.process_group import ALONE, ProcessGroup
from mechstudy.machine.runtime_options import RunOptions

T = TypeVar("T")

_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|alloc_failed|bad_alloc", re.IGNORECASE
)


@dataclass
class Runtime:
    """What a phase may use. Results must not depend on it beyond rounding.

    Attributes:
        options: of the run; ``device``, ``threads`` and ``batch_tokens`` are what they resolved to for this unit.
        cache: keeps models loaded between units of one process.
        chosen: what the phase decided by measuring, for the manifest.
        group: the processes that share the unit.
        absent: ``{name, status, reason}`` of each input that does not exist.
    """

    options: RunOptions = field(default_factory=RunOptions)
    device: str = "cpu"
    threads: int | None = None
    batch_tokens: int = 4096
    progress: Progress = field(default_factory=NullProgress)
    cache: dict[Any, Any] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    group: ProcessGroup = ALONE
    absent: Sequence[Mapping[str, Any]] = ()

    @property
    def base(self) -> Path:
        """The study file's folder, where relative paths start."""
        return self.options.base

    def info(self) -> dict[str, Any]:
        """What a manifest records of it."""
        n = self.group.size
        return {
            "device": self.device,
            "threads": self.threads,
            "batch_tokens": self.batch_tokens,
            "profile": self.options.trace_folder is not None,
            **({"world_size": n, "peak_rss_bytes_of_helpers": list(self.group.peaks)} if n > 1 else {}),
            **self.chosen,
        }


def is_out_of_memory(error: BaseException) -> bool:
    """True for MemoryError, torch's OutOfMemoryError, and the RuntimeErrors allocators raise instead."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def oom_backoff(fn: Callable[[int], T], batch_size: int, progress: Progress, *, item_tokens: int | None = None) -> T:
    """Runs ``fn(batch_size)`` and, each time memory runs out, again with half of it, saying so.

    ``fn`` must be safe to run again from its start. Other errors pass through. With ``item_tokens``, tokens
    per item, what fits is remembered: later batches of the unit start with it (`batch_fitting`), and so do later units
    of its kind.

    Raises:
        MechstudyError: memory runs out even at a batch size of one.
    """
    assert batch_size >= 1, batch_size
    known, shrunk = batch_fitting.current(), False
    if item_tokens is not None:
        batch_size = known.start(batch_size, item_tokens)
    while True:
        try:
            result = fn(batch_size)
            if shrunk and item_tokens is not None:
                known.learn(batch_size, item_tokens)
            return result
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        # Outside the except block: the exception's frames no longer keep the failed batch's tensors alive.
        free_memory()
        if batch_size == 1:
            raise MechstudyError(
                "not enough memory, even with one item in a batch",
                facts={"cause": reason, "memory": f"{available_memory_bytes() / 2**30:.1f} GiB available"},
                fix="use a smaller model or context, a lower dtype, or a machine with more memory",
            )
        batch_size, shrunk = batch_size // 2, True
        progress.log(f"out of memory: trying again with a batch size of {batch_size} ({reason})")
