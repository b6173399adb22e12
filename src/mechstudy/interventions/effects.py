"""Effects of interventions on the answers' contrast, per sample: the recorder of results.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mechstudy.behaviours.contrast import AnswerLogProbs, Contrast, contrasts
from mechstudy.behaviours.schema import PromptPair
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.continued import Answer, answer_kind, answer_logprobs, continued_tokens
from mechstudy.interventions.metric import kl_divergence
from mechstudy.interventions.results import COLUMNS, SHARES, Cell, PartialTable
from mechstudy.interventions.runner import EditedRows, Values, save_samples
from mechstudy.interventions.samples import Plan, Variant
from mechstudy.machine.runtime import oom_backoff
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site


def run_interventions(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
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
        The path of results.csv (columns: `results.COLUMNS`, and `results.SHARES` where whole answers are compared;
        ``value`` = edited - clean metric).
    """
    shares = any(pair.whole_answers for suite in plan.suites for pair in suite.pairs)
    table = PartialTable(out, "results", COLUMNS + SHARES if shares else COLUMNS, config.save_every)
    save_samples(
        model,
        dictionaries,
        plan.suites,
        lambda chunk: LogitEffects(model, chunk.pairs, progress, shares=shares),
        table,
        label=f"interventions[{plan.behaviour}]",
        progress=progress,
        batch_tokens=batch_tokens,
    )
    return table.join()


class LogitEffects:
    """Records, for samples of some pairs of one length, the columns of `results.COLUMNS` after ``sample``.

    With ``shares`` also those of `results.SHARES`.
    """

    capture: Sequence[Site] = ()

    def __init__(
        self,
        model: LanguageModel,
        pairs: Sequence[PromptPair],
        progress: Progress | None = None,
        *,
        shares: bool = False,
    ) -> None:
        self.model, self.pairs, self.progress, self.shares = model, pairs, progress or NullProgress(), shares
        self._corrupted: list[float | None] = []

    def prepare(self) -> None:
        """Measure the metric on every pair's corrupted prompt; None for pairs without one."""
        self._corrupted = [None] * len(self.pairs)
        kinds = [(len(pair.corrupted_tokens), *answer_kind(pair)) for pair in self.pairs]
        for kind in dict.fromkeys(kind for kind in kinds if kind[0]):
            members = [i for i in range(len(self.pairs)) if kinds[i] == kind]
            for i, value in zip(members, self._metric([self.pairs[i] for i in members]), strict=True):
                self._corrupted[i] = value

    def _metric(self, pairs: Sequence[PromptPair]) -> list[float]:
        """The metric on corrupted prompts of one length, with answers of one length if they count as wholes."""
        if pairs[0].whole_answers:
            prompts = [p.corrupted_tokens for p in pairs]
            right = self._logprobs_after(prompts, [p.answer_tokens for p in pairs])
            wrong = self._logprobs_after(prompts, [p.wrong_tokens for p in pairs])
            return AnswerLogProbs(right, wrong).differences().tolist()
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

    def _logprobs_after(self, prompts: Sequence[Answer], answers: Sequence[Answer]) -> Tensor:
        """Log-probabilities [B, T] of answers of T tokens after prompts of one length."""
        tokens_BT = continued_tokens(prompts, answers)

        def run(size: int) -> Tensor:
            parts = []
            for start in range(0, len(tokens_BT), size):
                logits = self.model.forward(tokens_BT[start : start + size], logits_at=len(answers[0])).logits
                assert logits is not None
                parts.append(answer_logprobs(logits, answers[start : start + size]))
            return torch.cat(parts)

        return oom_backoff(run, len(tokens_BT), self.progress, item_tokens=tokens_BT.shape[1])

    def measure(self, rows: EditedRows[Variant]) -> list[Values]:
        """Of every row: the clean metric, the edited one, their difference, and the KL divergence of the next token.

        Where whole answers are compared, then the changes of the log-probabilities of the right and the wrong tokens.
        """
        kl = kl_divergence(rows.clean.logits_BV, rows.logits_BV)
        if rows.answers is None:
            of_row = [Contrast.of_pair(pair) for pair in rows.pairs]
            before, after = contrasts(rows.clean.logits_BV, of_row), contrasts(rows.logits_BV, of_row)
            return list(zip(before.tolist(), after.tolist(), (after - before).tolist(), kl.tolist(), strict=True))
        clean, edited = rows.answers
        before, after = clean.differences(), edited.differences()
        moved = torch.cat([edited.right_BT - clean.right_BT, edited.wrong_BT - clean.wrong_BT], 1)
        columns = zip(
            before.tolist(), after.tolist(), (after - before).tolist(), kl.tolist(), moved.tolist(), strict=True
        )
        return [(*values, *shares) for *values, shares in columns]

    def cells(self, variant: Variant, pair_number: int, n_edits: int, values: Values) -> tuple[Cell, ...]:
        """The sample's row of results.csv."""
        pair, (clean, metric, value, kl, *moved) = self.pairs[pair_number], values
        n = len(pair.answer_tokens)
        shares: tuple[Cell, ...] = ()
        if self.shares:
            shares = tuple(" ".join(map(repr, part)) for part in (moved[:n], moved[n:]))
        return (
            variant.kind, variant.item, variant.group, variant.role, variant.draw, variant.alpha, pair.id,
            pair.group, n_edits, clean, self._corrupted[pair_number], metric, value, kl, *shares,
        )  # fmt: skip
