"""``dictionaries.source: auto``: whether rows are stored or streamed, decided by disk, memory and forward passes.

The choice is made once per run folder, when the study is opened. A run records it in ``resolved.json``, and later
openings use the record: the store that a run has written would otherwise change the answer. The units are those of a
study that names this source, and so are the artifact ids; a study that must be the same on two machines names its
source. Torch-free.
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
from mechstudy.study.dag import Evaluation, Graph
from mechstudy.study.phases.capture import CorpusCapturePhase
from mechstudy.study.phases.stream import StreamPhase
from mechstudy.study.run_folder import RunFolder
from mechstudy.study.study import Study
from mechstudy.study.unit import Unit

RESOLVED = "resolved.json"
_FIELD = "dictionaries.source"


@dataclass(frozen=True)
class Choice:
    """``source``: store or stream; ``why`` in one line."""

    source: str
    why: str

    def note(self) -> str:
        """The choice as a sentence."""
        return f"dictionaries.source: auto is {self.source}: {self.why}"


@dataclass(frozen=True)
class Need:
    """Numbers that decide.

    A store writes ``disk`` bytes at the fullest moment, of which ``disk_short`` are missing; a stream takes ``memory``
    bytes. Training reads ``trained_rows``, the corpus has ``corpus_rows``.
    """

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
    """The source of a study with ``auto``: the run's record, or a new decision.

    Args:
        units_of: builds a study's units.
        available: bytes of memory; measured if None.
    """
    earlier = _read(folder)
    if earlier is not None:
        return earlier
    stored, streamed = (units_of(with_source(study, source)) for source in ("store", "stream"))
    disk = disk_need(Evaluation(Graph(stored), RunFolder(folder).store), folder, study.storage.quota_bytes)
    captures = [u for u in stored if isinstance(u.phase, CorpusCapturePhase)]
    stores = [u.estimate.bytes_on_disk for u in captures]
    c, training = study.corpus, study.dictionaries.training
    return decide(
        Need(
            disk=max(stores) if captures[0].retention == "discard" else sum(stores),
            disk_short=disk.short_by,
            disk_free=disk.free if disk.quota_left is None else min(disk.free, disk.quota_left),
            memory=max((u.estimate.bytes_in_memory for u in streamed if isinstance(u.phase, StreamPhase)), default=0),
            memory_available=available_memory_bytes() if available is None else available,
            trained_rows=training.steps * training.batch_size,
            corpus_rows=c.n_rows * c.context,
        )
    )


def with_source(study: Study, source: str) -> Study:
    """The study with this source."""
    return study.model_copy(update={"dictionaries": study.dictionaries.model_copy(update={"source": source})})


def record(folder: Path, choice: Choice) -> None:
    """Writes the choice to a run's folder, for good."""
    keep(folder, _FIELD, asdict(choice))


def keep(folder: Path, field: str, value: Any) -> None:
    """Writes what a field of the study resolved to, beside what other fields did."""
    file = folder / RESOLVED
    write_json_atomic(file, {**(read_json(file) if file.exists() else {}), field: value})


def _read(folder: Path) -> Choice | None:
    if not (folder / RESOLVED).exists():
        return None
    recorded: Any = read_json(folder / RESOLVED).get(_FIELD)
    if recorded is None:
        return None
    why = str(recorded["why"])
    begun = f"as this run began ({RESOLVED}): "
    return Choice(str(recorded["source"]), why if why.startswith(begun) else begun + why)
