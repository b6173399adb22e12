"""``dictionaries.source: auto``: whether rows are stored or streamed, decided by disk, memory and forward passes.

The choice is made where the study is opened, once per run folder: a run writes it to ``resolved.json``, and whatever is
opened there later keeps to it (else the store a run has written would itself change the answer). From then on it is as
if the study named it: it shapes the units, stands in the report's copy of the study, and so is part of artifacts' ids.
A study that must be the same on two machines names its source. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.core.sizes import human
from mechstudy.machine.memory import available_memory_bytes
from mechstudy.planning.disk import disk_need
from mechstudy.runner.run import Run
from mechstudy.runner.run_unit import Options
from mechstudy.study.study import Study
from mechstudy.study.unit import Unit

RESOLVED = "resolved.json"


@dataclass(frozen=True)
class Choice:
    """``source``: store or stream; ``why`` in one line."""

    source: str
    why: str

    def note(self) -> str:
        """For people."""
        return f"dictionaries.source: auto is {self.source}: {self.why}"


@dataclass(frozen=True)
class Need:
    """What decides: bytes a store writes at the fullest moment, what is missing of them (with some to spare), and free;
    bytes of memory a stream takes, and available; rows trained on, and rows of the corpus."""

    disk: int
    disk_short: int
    disk_free: int
    memory: int
    memory_available: int
    trained_rows: int
    corpus_rows: int


def decide(need: Need) -> Choice:
    """Stream where a store does not fit, or saves no forward pass; store elsewhere.

    A store costs one forward pass over the corpus and its disk, a stream a forward pass over every row trained on.
    """
    disk = f"{human(need.disk)} of disk"
    memory = f"{human(need.memory)} of memory"
    times = need.trained_rows / need.corpus_rows
    if need.disk_short and need.memory > need.memory_available:
        return Choice(
            "store",
            f"neither fits: a store needs {disk} ({human(need.disk_short)} more than there is), a stream {memory} "
            f"({human(need.memory_available)} available); smaller dictionaries.layers_per_pass, or window_rows",
        )
    if need.disk_short:
        return Choice("stream", f"a store needs {disk}, {human(need.disk_short)} more than there is")
    if need.memory > need.memory_available:
        return Choice(
            "store",
            f"a stream's window and dictionaries need {memory}, {human(need.memory_available)} are available; {disk}",
        )
    if times <= 1:
        return Choice(
            "stream",
            f"{need.trained_rows:,} rows are trained on, {need.corpus_rows:,} are in the corpus: a store would save no "
            f"forward pass and take {disk}",
        )
    return Choice(
        "store", f"{disk} ({human(need.disk_free)} free) save forward passes over {times:.1f} times the corpus"
    )


def choose_source(
    study: Study, units_of: Callable[[Study], list[Unit]], folder: Path, available: int | None = None
) -> Choice:
    """The source of a study that leaves it to us: as this run has begun, or by what the machine has.

    Args:
        units_of: builds a study's units.
        available: bytes of memory; measured if None.
    """
    earlier = _read(folder)
    if earlier is not None:
        return earlier
    stored, streamed = (units_of(with_source(study, source)) for source in ("store", "stream"))
    disk = disk_need(Run(folder, stored, Options()).evaluate(), folder, study.storage.quota_bytes)
    captures = [u for u in stored if u.name.startswith("capture[corpus")]
    stores = [u.estimate.bytes_on_disk for u in captures]
    c, training = study.corpus, study.dictionaries.training
    return decide(
        Need(
            disk=max(stores) if captures[0].retention == "discard" else sum(stores),
            disk_short=disk.short_by,
            disk_free=disk.free if disk.quota_left is None else min(disk.free, disk.quota_left),
            memory=max((u.estimate.bytes_in_memory for u in streamed if u.phase == "stream"), default=0),
            memory_available=available_memory_bytes() if available is None else available,
            trained_rows=training.steps * training.batch_size,
            corpus_rows=c.n_rows * c.context,
        )
    )


def with_source(study: Study, source: str) -> Study:
    """The study with its source named."""
    return study.model_copy(update={"dictionaries": study.dictionaries.model_copy(update={"source": source})})


def record(folder: Path, choice: Choice) -> None:
    """Hold a run to its choice."""
    write_json_atomic(folder / RESOLVED, {"dictionaries.source": asdict(choice)})


def _read(folder: Path) -> Choice | None:
    if not (folder / RESOLVED).exists():
        return None
    found: Any = read_json(folder / RESOLVED)["dictionaries.source"]
    why = str(found["why"])
    begun = f"as this run began ({RESOLVED}): "
    return Choice(str(found["source"]), why if why.startswith(begun) else begun + why)
