"""Runs samples in batches that depend on the sample list alone: one runner for every kind of intervention."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from mechstudy.behaviours.contrast import AnswerLogProbs
from mechstudy.behaviours.schema import PromptPair
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.continued import Continued, answer_kind, continued_runs, edited_answers
from mechstudy.interventions.engine import CleanRun, RowEdit, clean_run, edited_run
from mechstudy.interventions.last_tokens import LastTokenRuns
from mechstudy.interventions.results import Cell, PartialTable
from mechstudy.machine.runtime import oom_backoff
from mechstudy.models.batches import length_buckets
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site

Values = tuple[float, ...]


@runtime_checkable
class Intervention(Protocol):
    """One intervention, whatever the prompt."""

    @property
    def start(self) -> int:
        """The lowest layer it edits."""

    @property
    def only_where_edited(self) -> bool:
        """Whether prompts without an edit are no samples."""

    @property
    def edits(self) -> Callable[[int], Sequence[RowEdit]]:
        """What it does to the suite's pair ``i``."""


V = TypeVar("V", bound=Intervention)


@dataclass(frozen=True)
class Suite(Generic[V]):
    """Interventions on the clean prompts of the same pairs; with ``reuse`` they write vectors (`LastTokenRuns`)."""

    name: str
    pairs: tuple[PromptPair, ...]
    variants: tuple[V, ...]
    reuse: bool = False


@dataclass(frozen=True)
class Chunk(Generic[V]):
    """Pairs of one length and the batches of interventions that run on them.

    Every batch has ``width`` x len(pairs) rows (intervention by intervention); the last one is filled up with clean
    rows, so that one clean run is the reference of all.
    """

    suite: Suite[V]
    pair_numbers: tuple[int, ...]
    width: int

    @property
    def pairs(self) -> list[PromptPair]:
        """The chunk's pairs."""
        return [self.suite.pairs[i] for i in self.pair_numbers]

    def batches(self) -> Iterator[tuple[V, ...]]:
        """The interventions, ``width`` at a time."""
        variants = self.suite.variants
        for start in range(0, len(variants), self.width):
            yield variants[start : start + self.width]


@dataclass(frozen=True)
class EditedRows(Generic[V]):
    """Rows run together, clean and edited; ``variants`` holds None for rows that only fill the batch up.

    ``edited`` are the captured sites' activations, [B, T, width]; those of the clean rows are ``clean.activations``.
    ``answers`` are the clean and the edited log-probabilities of the answers' tokens, where whole answers are compared.
    """

    variants: Sequence[V | None]
    pairs: Sequence[PromptPair]
    clean: CleanRun
    logits_BV: Tensor
    edited: Mapping[Site, Tensor]
    answers: tuple[AnswerLogProbs, AnswerLogProbs] | None


@runtime_checkable
class Recorder(Protocol[V]):
    """What is recorded of one chunk's samples."""

    @property
    def capture(self) -> Sequence[Site]:
        """Sites whose activations it needs."""

    def prepare(self) -> None:
        """Called once, before the chunk's first batch is run."""

    def measure(self, rows: EditedRows[V]) -> list[Values]:
        """The numbers measured on every row."""

    def cells(self, variant: V, pair_number: int, n_edits: int, values: Values) -> tuple[Cell, ...]:
        """The table's columns after ``sample``; ``pair_number`` counts within the chunk."""


def run_samples(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    suites: Sequence[Suite[V]],
    recorder_for: Callable[[Chunk[V]], Recorder[V]],
    *,
    first: int = 0,
    progress: Progress | None = None,
    batch_tokens: int = 4096,
) -> Iterator[tuple[Cell, ...]]:
    """Measure every sample from number ``first`` on, in order: (sample number, *the recorder's cells).

    Batches without a wanted sample are not run; the others are run whole, so values do not depend on ``first``.
    """
    number = 0
    for chunk in chunks(suites, batch_tokens):
        runs = _ChunkRuns(model, dictionaries, chunk, recorder_for(chunk), progress or NullProgress())
        for batch in chunk.batches():
            edits = runs.edits(batch)
            recorded = _recorded(batch, edits, len(chunk.pair_numbers))
            if number + len(recorded) > first:
                for offset, cells in enumerate(runs.measure(batch, edits, recorded)):
                    if number + offset >= first:
                        yield (number + offset, *cells)
            number += len(recorded)


def save_samples(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    suites: Sequence[Suite[V]],
    recorder_for: Callable[[Chunk[V]], Recorder[V]],
    table: PartialTable,
    *,
    label: str,
    progress: Progress | None = None,
    batch_tokens: int = 4096,
) -> None:
    """Measure every sample that the table does not hold yet, and save them part by part.

    A killed run computes the batch it was in again and continues: the files are the same bytes (same machine, same
    ``batch_tokens``).
    """
    if table.is_complete:
        return
    progress, done = progress or NullProgress(), table.n_saved
    with progress.bar(label, n_samples(suites), "samples", done=done) as bar:
        for row in run_samples(
            model, dictionaries, suites, recorder_for, first=done, progress=progress, batch_tokens=batch_tokens
        ):
            table.append(row)
            bar.advance()
    table.save()


def chunks(suites: Sequence[Suite[V]], batch_tokens: int) -> Iterator[Chunk[V]]:
    """The suites cut into chunks of pairs of one length, in a fixed order."""
    for suite in suites:
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)  # pairs whose whole answers are equally long
        for i, pair in enumerate(suite.pairs):
            alike[answer_kind(pair)].append(i)
        for longest, group in sorted((max(1, *answers), group) for answers, group in alike.items()):
            lengths = [len(suite.pairs[i].clean_tokens) + longest - 1 for i in group]
            for numbers in length_buckets(lengths, batch_tokens):
                tokens = len(numbers) * lengths[numbers[0]]
                width = max(1, min(batch_tokens // tokens, len(suite.variants)))
                yield Chunk(suite, tuple(group[n] for n in numbers), width)


def n_samples(suites: Sequence[Suite[V]]) -> int:
    """Number of samples in all suites."""
    return sum(
        not variant.only_where_edited or bool(variant.edits(i))
        for suite in suites
        for variant in suite.variants
        for i in range(len(suite.pairs))
    )


def _recorded(batch: Sequence[V], edits: Sequence[Sequence[RowEdit]], n_pairs: int) -> list[int]:
    """Rows of a batch that are samples: not the filling, not prompts that an intervention does not apply to."""
    return [
        v * n_pairs + p
        for v, variant in enumerate(batch)
        for p in range(n_pairs)
        if edits[v * n_pairs + p] or not variant.only_where_edited
    ]


class _ChunkRuns(Generic[V]):
    """Runs batches of one chunk against clean runs of the same rows, made when the first of them is needed.

    Where memory runs out, rows are run in parts of half as many, and again, each part with a clean run of its own
    shape: an edit that changes nothing then still changes exactly nothing.
    """

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Mapping[int, Basis],
        chunk: Chunk[V],
        recorder: Recorder[V],
        progress: Progress,
    ) -> None:
        self.model, self.dictionaries, self.chunk = model, dictionaries, chunk
        self.recorder, self.progress, self.pairs = recorder, progress, chunk.pairs
        self._size, self._prepared = chunk.width * len(self.pairs), False
        self._starts = {v.start for v in chunk.suite.variants}
        self._reference: _Clean | None = None
        self._last_tokens = LastTokenRuns(model) if chunk.suite.reuse else None

    def edits(self, batch: Sequence[V]) -> list[Sequence[RowEdit]]:
        """The edits of every row, filled up to the chunk's fixed number of rows."""
        rows = [variant.edits(i) for variant in batch for i in self.chunk.pair_numbers]
        return rows + [()] * (self.chunk.width * len(self.pairs) - len(rows))

    def measure(
        self, batch: Sequence[V], edits: Sequence[Sequence[RowEdit]], recorded: Sequence[int]
    ) -> Iterator[tuple[Cell, ...]]:
        """The recorder's cells for the rows in ``recorded``."""
        if not self._prepared:
            self.recorder.prepare()
            self._prepared = True
        values = self._measured(batch, edits)
        for row in recorded:
            variant, pair_number = batch[row // len(self.pairs)], row % len(self.pairs)
            yield self.recorder.cells(variant, pair_number, len(edits[row]), values[row])

    def _measured(self, batch: Sequence[V], edits: Sequence[Sequence[RowEdit]]) -> list[Values]:
        """The measured values of every row, as many rows at a time as fit; later batches begin with that many."""
        n_pairs = len(self.pairs)
        of_row = [batch[row // n_pairs] if row // n_pairs < len(batch) else None for row in range(len(edits))]

        def run(size: int) -> list[Values]:
            if size != self._size:
                self._size, self._reference = size, None  # also frees the larger clean run
            values: list[Values] = []
            for start in range(0, len(edits), size):
                filling = [()] * (start + size - len(edits))
                variants = [*of_row[start : start + size], *(None for _ in filling)]
                values += self._run(start, variants, [*edits[start : start + size], *filling])
            return values[: len(edits)]

        return oom_backoff(run, self._size, self.progress, item_tokens=len(self.pairs[0].clean_tokens))

    def _run(self, start: int, variants: Sequence[V | None], edits: Sequence[Sequence[RowEdit]]) -> list[Values]:
        pairs = [self.pairs[(start + i) % len(self.pairs)] for i in range(len(edits))]
        if self._last_tokens is not None:
            run, logits, of_answers = self._last_tokens.run(pairs, edits)
            return self.recorder.measure(EditedRows(variants, pairs, run, logits, {}, of_answers))
        clean = self._clean(pairs)
        edited = edited_run(self.model, self.dictionaries, clean.run, edits, capture=self.recorder.capture)
        assert edited.logits is not None
        answers, continued = None, clean.continued
        if continued is not None:
            after = edited_answers(self.model, self.dictionaries, continued, edits, edited.logits, clean.pairs)
            answers = continued.answers, after
        return self.recorder.measure(
            EditedRows(variants, clean.pairs, clean.run, edited.logits, edited.activations, answers)
        )

    def _clean(self, pairs: list[PromptPair]) -> _Clean:
        """The clean runs of these pairs; the last ones are kept."""
        if self._reference is None or self._reference.pairs != pairs:
            self._reference = None
            tokens_BT = torch.tensor([pair.clean_tokens for pair in pairs])
            run = clean_run(self.model, tokens_BT, self._starts, capture=self.recorder.capture)
            continued = continued_runs(self.model, pairs, run, self._starts) if pairs[0].whole_answers else None
            self._reference = _Clean(pairs, run, continued)
        return self._reference


@dataclass(frozen=True)
class _Clean:
    """Clean runs of pairs, with those of whole answers where these are compared."""

    pairs: Sequence[PromptPair]
    run: CleanRun
    continued: Continued | None
