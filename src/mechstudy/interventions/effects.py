"""Effects of interventions on the answers' contrast, per sample: the recorder of results.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mechstudy.behaviours.contrast import Contrast, contrasts
from mechstudy.behaviours.schema import PromptPair
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.metric import kl_divergence
from mechstudy.interventions.results import COLUMNS, Cell, PartialTable
from mechstudy.interventions.runner import EditedRows, Values, save_samples
from mechstudy.interventions.samples import Plan, Variant
from mechstudy.machine.runtime import oom_backoff
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site


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

    Writes ``results_partial_N.csv`` after every ``config.save_every`` samples and ``results.csv`` at the end.

    Returns:
        The path of results.csv (columns: `results.COLUMNS`; ``value`` = edited - clean `Contrast`).
    """
    table = PartialTable(out, "results", COLUMNS, config.save_every)
    save_samples(
        model,
        dictionaries,
        plan.suites,
        lambda chunk: LogitEffects(model, chunk.pairs, progress),
        table,
        label=f"interventions[{plan.behaviour}]",
        progress=progress,
        batch_tokens=batch_tokens,
    )
    return table.join()


class LogitEffects:
    """Records, for samples of some pairs of one length, the columns of `results.COLUMNS` after ``sample``."""

    capture: Sequence[Site] = ()

    def __init__(self, model: LanguageModel, pairs: Sequence[PromptPair], progress: Progress | None = None) -> None:
        self.model, self.pairs, self.progress = model, pairs, progress or NullProgress()
        self._corrupted: list[float | None] = []

    def prepare(self) -> None:
        """Measure the metric on every pair's corrupted prompt; None for pairs without one."""
        self._corrupted = [None] * len(self.pairs)
        for length in dict.fromkeys(len(pair.corrupted_tokens) for pair in self.pairs if pair.has_corrupted):
            members = [i for i, pair in enumerate(self.pairs) if len(pair.corrupted_tokens) == length]
            for i, value in zip(members, self._metric([self.pairs[i] for i in members]), strict=True):
                self._corrupted[i] = value

    def _metric(self, pairs: Sequence[PromptPair]) -> list[float]:
        """The metric on corrupted prompts of one length."""
        tokens_BT = torch.tensor([p.corrupted_tokens for p in pairs])
        of_row = [Contrast.of_pair(pair) for pair in pairs]

        def run(size: int) -> list[float]:
            values: list[float] = []
            for start in range(0, len(tokens_BT), size):
                part = slice(start, start + size)
                logits = self.model.forward(tokens_BT[part]).logits
                assert logits is not None
                values += contrasts(logits, of_row[part]).tolist()
            return values

        return oom_backoff(run, len(tokens_BT), self.progress, item_tokens=tokens_BT.shape[1])

    def measure(self, rows: EditedRows[Variant]) -> list[Values]:
        """Of every row: the clean metric, the edited one, their difference, and the KL divergence."""
        of_row = [Contrast.of_pair(pair) for pair in rows.pairs]
        before, after = contrasts(rows.clean.logits_BV, of_row), contrasts(rows.logits_BV, of_row)
        kl = kl_divergence(rows.clean.logits_BV, rows.logits_BV)
        return list(zip(before.tolist(), after.tolist(), (after - before).tolist(), kl.tolist(), strict=True))

    def cells(self, variant: Variant, pair_number: int, n_edits: int, values: Values) -> tuple[Cell, ...]:
        """The sample's row of results.csv."""
        pair, (clean, metric, value, kl) = self.pairs[pair_number], values
        return (
            variant.kind, variant.item, variant.group, variant.role, variant.draw, variant.alpha, pair.id,
            pair.group, n_edits, clean, self._corrupted[pair_number], metric, value, kl,
        )  # fmt: skip
