"""Runs a plan's samples in batches that depend on the sample list alone, and saves them as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.engine import CleanRun, RowEdit, clean_run, edited_run
from mechstudy.interventions.metric import kl_divergence, logit_difference
from mechstudy.interventions.results import Cell, PartialResults
from mechstudy.interventions.samples import Plan, Suite, Variant
from mechstudy.machine.runtime import oom_backoff
from mechstudy.models.batches import length_buckets
from mechstudy.models.language_model import LanguageModel

_Measured = tuple[float, float, float, float]


@dataclass(frozen=True)
class Chunk:
    """Pairs of one length and the batches of variants that run on them.

    Every batch has ``width`` x len(pairs) rows (variant by variant), the last one filled up with clean rows, so
    that one clean run is the reference of all.
    """

    suite: Suite
    pairs: tuple[int, ...]
    width: int

    def batches(self) -> Iterator[tuple[Variant, ...]]:
        variants = self.suite.variants
        for start in range(0, len(variants), self.width):
            yield variants[start : start + self.width]


def run_interventions(
    model: LanguageModel,
    dictionaries: Mapping[int, Dictionary],
    plan: Plan,
    config: InterventionConfig,
    out: Path,
    *,
    progress: Progress | None = None,
    batch_tokens: int = 4096,
) -> Path:
    """Run every sample of the plan that is not saved yet.

    Writes ``results_partial_N.csv`` after every ``config.save_every`` samples and ``results.csv`` at the end. A
    run that was killed computes the batch it was in again and goes on: the files are the same bytes (same
    machine, same ``batch_tokens``).

    Returns:
        The path of results.csv (columns: `results.COLUMNS`; ``value`` = edited - clean logit difference).
    """
    progress = progress or NullProgress()
    saved = PartialResults(out, config.save_every)
    done = saved.n_saved
    if done % config.save_every:  # a last, shorter part: everything was saved
        return saved.finish()
    number = 0
    with progress.bar(f"interventions[{plan.behaviour}]", n_samples(plan), "samples", done=done) as bar:
        for chunk in chunks(plan, batch_tokens):
            runner = _ChunkRunner(model, dictionaries, chunk, progress)
            for batch in chunk.batches():
                rows = runner.rows(batch)
                places = _recorded(batch, rows, len(chunk.pairs))
                if number + len(places) > done:
                    for offset, cells in enumerate(runner.measure(batch, rows, places)):
                        if number + offset >= done:
                            saved.append((number + offset, *cells))
                            bar.advance()
                number += len(places)
    return saved.finish()


def chunks(plan: Plan, batch_tokens: int) -> Iterator[Chunk]:
    """The plan cut into chunks of pairs of one length, in a fixed order."""
    for suite in plan.suites:
        for pairs in length_buckets([len(p.clean_tokens) for p in suite.pairs], batch_tokens):
            tokens = len(pairs) * len(suite.pairs[pairs[0]].clean_tokens)
            width = max(1, min(batch_tokens // tokens, len(suite.variants)))
            yield Chunk(suite, tuple(pairs), width)


def n_samples(plan: Plan) -> int:
    """How many samples the plan holds."""
    total = 0
    for suite in plan.suites:
        for variant in suite.variants:
            total += sum(not variant.only_where_edited or bool(variant.edits(i)) for i in range(len(suite.pairs)))
    return total


def _recorded(batch: Sequence[Variant], rows: Sequence[Sequence[RowEdit]], n_pairs: int) -> list[int]:
    """Rows of a batch that are samples: not the filling, not prompts a variant does not apply to."""
    return [
        v * n_pairs + p
        for v, variant in enumerate(batch)
        for p in range(n_pairs)
        if rows[v * n_pairs + p] or not variant.only_where_edited
    ]


class _ChunkRunner:
    """Measures batches of one chunk against clean runs of the same rows, made when the first of them is needed.

    Where memory runs out, rows are run in parts of half as many, and again, each part with a clean run of its own
    shape: an edit that changes nothing then still changes exactly nothing.
    """

    def __init__(
        self, model: LanguageModel, dictionaries: Mapping[int, Dictionary], chunk: Chunk, progress: Progress
    ) -> None:
        self.model, self.dictionaries, self.chunk, self.progress = model, dictionaries, chunk, progress
        self.pairs: list[PromptPair] = [chunk.suite.pairs[i] for i in chunk.pairs]
        self._size = chunk.width * len(self.pairs)
        self._item_tokens = len(self.pairs[0].clean_tokens)
        self._starts = {v.start for v in chunk.suite.variants}
        self._clean: tuple[tuple[int, ...], CleanRun] | None = None
        self._corrupted: list[float] | None = None

    def rows(self, batch: Sequence[Variant]) -> list[Sequence[RowEdit]]:
        """The edits of every row, filled up to the chunk's fixed number of rows."""
        rows = [variant.edits(i) for variant in batch for i in self.chunk.pairs]
        return rows + [()] * (self.chunk.width * len(self.pairs) - len(rows))

    def measure(
        self, batch: Sequence[Variant], rows: Sequence[Sequence[RowEdit]], places: Sequence[int]
    ) -> Iterator[tuple[Cell, ...]]:
        """The result columns after ``sample``, for the rows in ``places``."""
        corrupted = self._of_corrupted()
        found = self._backed_off(lambda size: self._measured(rows, size))
        for row in places:
            variant, p = batch[row // len(self.pairs)], row % len(self.pairs)
            pair = self.pairs[p]
            clean, metric, value, kl = found[row]
            yield (
                variant.kind, variant.item, variant.group, variant.role, variant.draw, variant.alpha, pair.id,
                pair.group, len(rows[row]), clean, corrupted[p], metric, value, kl,
            )  # fmt: skip

    def _backed_off(self, run: Callable[[int], list[_Measured]]) -> list[_Measured]:
        """Runs with as many rows at a time as fit; the chunk's later batches then begin with those."""

        def tried(size: int) -> list[_Measured]:
            if size != self._size:
                self._size, self._clean = size, None  # also lets go of the larger clean run
            return run(size)

        return oom_backoff(tried, self._size, self.progress, item_tokens=self._item_tokens)

    def _measured(self, rows: Sequence[Sequence[RowEdit]], size: int) -> list[_Measured]:
        """Of every row: the clean metric, the edited one, their difference, and the divergence."""
        found: list[_Measured] = []
        for start in range(0, len(rows), size):
            part = list(rows[start : start + size])
            part += [()] * (size - len(part))
            which = tuple((start + i) % len(self.pairs) for i in range(size))
            clean, answer, wrong = self._reference(which)
            logits = edited_run(self.model, self.dictionaries, clean, part).logits
            assert logits is not None
            before = logit_difference(clean.logits_BV, answer, wrong)
            after = logit_difference(logits, answer, wrong)
            kl = kl_divergence(clean.logits_BV, logits)
            found += zip(before.tolist(), after.tolist(), (after - before).tolist(), kl.tolist(), strict=True)
        return found[: len(rows)]

    def _reference(self, which: tuple[int, ...]) -> tuple[CleanRun, Tensor, Tensor]:
        """The clean run of these pairs, and their answers; the last one is kept."""
        pairs = [self.pairs[p] for p in which]
        if self._clean is None or self._clean[0] != which:
            self._clean = None
            self._clean = which, clean_run(self.model, _tokens([p.clean_tokens for p in pairs]), self._starts)
        return self._clean[1], *_answers(pairs)

    def _of_corrupted(self) -> list[float]:
        """The metric on every pair's corrupted prompt."""
        if self._corrupted is None:
            tokens, (answer, wrong) = _tokens([p.corrupted_tokens for p in self.pairs]), _answers(self.pairs)

            def run(size: int) -> list[float]:
                found: list[float] = []
                for start in range(0, len(tokens), size):
                    part = slice(start, start + size)
                    logits = self.model.forward(tokens[part]).logits
                    assert logits is not None
                    found += logit_difference(logits, answer[part], wrong[part]).tolist()
                return found

            self._corrupted = oom_backoff(run, len(tokens), self.progress, item_tokens=self._item_tokens)
        return self._corrupted


def _answers(pairs: Sequence[PromptPair]) -> tuple[Tensor, Tensor]:
    return _tokens([p.answer_tokens[0] for p in pairs]), _tokens([p.wrong_tokens[0] for p in pairs])


def _tokens(rows: Sequence) -> Tensor:
    return torch.tensor(rows)
