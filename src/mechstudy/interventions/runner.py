"""Runs a plan's samples in batches that depend on the sample list alone, and saves them as they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from mechstudy.models.batches import length_buckets
from mechstudy.models.language_model import LanguageModel


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
            runner = _ChunkRunner(model, dictionaries, chunk)
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
    """Measures batches of one chunk against one clean run, made when the first of them is needed."""

    def __init__(self, model: LanguageModel, dictionaries: Mapping[int, Dictionary], chunk: Chunk) -> None:
        self.model, self.dictionaries, self.chunk = model, dictionaries, chunk
        self.pairs: list[PromptPair] = [chunk.suite.pairs[i] for i in chunk.pairs]
        self._clean: CleanRun | None = None

    def rows(self, batch: Sequence[Variant]) -> list[Sequence[RowEdit]]:
        """The edits of every row, filled up to the chunk's fixed number of rows."""
        rows = [variant.edits(i) for variant in batch for i in self.chunk.pairs]
        return rows + [()] * (self.chunk.width * len(self.pairs) - len(rows))

    def measure(
        self, batch: Sequence[Variant], rows: Sequence[Sequence[RowEdit]], places: Sequence[int]
    ) -> Iterator[tuple[Cell, ...]]:
        """The result columns after ``sample``, for the rows in ``places``."""
        clean = self._reference()
        logits = edited_run(self.model, self.dictionaries, clean, rows).logits
        assert logits is not None
        metric = logit_difference(logits, self._answer, self._wrong)
        value = (metric - self._metric).tolist()
        kl = kl_divergence(clean.logits_BV, logits).tolist()
        metrics, cleans = metric.tolist(), self._metric.tolist()
        for row in places:
            variant, p = batch[row // len(self.pairs)], row % len(self.pairs)
            pair = self.pairs[p]
            yield (
                variant.kind, variant.item, variant.group, variant.role, variant.draw, variant.alpha, pair.id,
                pair.group, len(rows[row]), cleans[row], self._corrupted[p], metrics[row], value[row], kl[row],
            )  # fmt: skip

    def _reference(self) -> CleanRun:
        if self._clean is None:
            width, pairs = self.chunk.width, self.pairs
            starts = {v.start for v in self.chunk.suite.variants}
            self._clean = clean_run(self.model, _tokens([p.clean_tokens for p in pairs] * width), starts)
            self._answer = _tokens([p.answer_tokens[0] for p in pairs] * width)
            self._wrong = _tokens([p.wrong_tokens[0] for p in pairs] * width)
            self._metric = logit_difference(self._clean.logits_BV, self._answer, self._wrong)
            logits = self.model.forward(_tokens([p.corrupted_tokens for p in pairs])).logits
            assert logits is not None
            n = len(pairs)
            self._corrupted: list[float] = logit_difference(logits, self._answer[:n], self._wrong[:n]).tolist()
        return self._clean


def _tokens(rows: Sequence) -> Tensor:
    return torch.tensor(rows)
