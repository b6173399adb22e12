"""What a phase runs with: options, device, the processes that share its unit, and back-off when memory runs out."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.machine.devices import free_memory
from mechstudy.machine.memory import available_memory_bytes
from mechstudy.machine.runtime_options import RunOptions

T = TypeVar("T")
NOTHING: Mapping[str, Any] = MappingProxyType({})
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|alloc_failed|bad_alloc", re.IGNORECASE
)


class ProcessGroup:
    """The processes that share a unit; this one is ``rank`` of ``size``, by default alone.

    Rank 0 leads: it runs the phase's `run`, and inside `sharing` its own share. The others run the phase's `share`
    with the same spec and inputs, and with what the leader has ``broadcast``. They write into the unit's partial
    folder.
    """

    peaks: Sequence[int] = ()  # peak memory of the others' shares, in bytes

    def __init__(self, rank: int = 0, size: int = 1, broadcast: Mapping[str, Any] = NOTHING) -> None:
        self.rank, self.size, self.broadcast = rank, size, broadcast

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This process' items: every ``size``-th one."""
        return items[self.rank :: self.size]

    def use_batch(self, tokens: int) -> None:
        """From now on the others' shares use batches of this many tokens."""

    @contextmanager
    def sharing(self, broadcast: Mapping[str, Any] = NOTHING, *, together: bool = False) -> Iterator[None]:
        """The others work on their shares while the block runs; when it ends, all shares are done.

        Args:
            broadcast: JSON that every process receives.
            together: the processes exchange tensors through torch.distributed.

        Raises:
            MechstudyError: a share failed (the rank is named), or its process was killed.
            Stopped: a stop was requested; every process has saved its progress.
        """
        yield


@dataclass
class Runtime:
    """What a phase may use. Results must not depend on it beyond rounding.

    Attributes:
        options: of the run; ``device``, ``threads`` and ``batch_tokens`` are what they resolved to for this unit.
        cache: keeps models loaded between units of one process.
        chosen: what the phase decided by measuring, for the manifest.
        record: what else the manifest's ``runtime`` holds.
        group: the processes that share the unit.
        absent: ``{name, status, reason}`` of each input that does not exist.
        run_folder: of a report, which shows what readers keep there (labels, edits of graphs); no id depends on it.
    """

    options: RunOptions = field(default_factory=RunOptions)
    device: str = "cpu"
    threads: int | None = None
    batch_tokens: int = 4096
    progress: Progress = field(default_factory=NullProgress)
    cache: dict[Any, Any] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    group: ProcessGroup = field(default_factory=ProcessGroup)
    absent: Sequence[Mapping[str, Any]] = ()
    run_folder: Path | None = None

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
            **self.record,
        }


@dataclass
class Fitting:
    """The batch that fits in memory, learned where one did not, so that the unit's next batches start with it.

    ``tokens`` are those of the smallest batch that a batch too large was cut to; None before.
    """

    tokens: int | None = None

    def start(self, size: int, item_tokens: int) -> int:
        """The items to begin with where ``size`` of ``item_tokens`` tokens are asked for; at least one."""
        return size if self.tokens is None else max(1, min(size, self.tokens // item_tokens))

    def learn(self, size: int, item_tokens: int) -> None:
        """A batch of so many items fits, and a larger one did not."""
        tokens = size * item_tokens
        self.tokens = tokens if self.tokens is None else min(self.tokens, tokens)


_CURRENT: ContextVar[Fitting | None] = ContextVar("fitting", default=None)


@contextmanager
def fitting() -> Iterator[Fitting]:
    """What is learned inside the block, and used there by later batches."""
    found = Fitting()
    token = _CURRENT.set(found)
    try:
        yield found
    finally:
        _CURRENT.reset(token)


def current_fitting() -> Fitting:
    """The unit's; outside of one, a new one, so that nothing is carried from batch to batch."""
    return _CURRENT.get() or Fitting()


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
    per item, what fits is remembered: later batches of the unit start with it (`Fitting`), and so do later units
    of its kind.

    Raises:
        MechstudyError: memory runs out even at a batch size of one.
    """
    assert batch_size >= 1, batch_size
    known, shrunk = current_fitting(), False
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
