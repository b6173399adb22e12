"""Patched runs that start at the first patched layer and token, on the clean run's residuals, keys and values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mechstudy.behaviours.contrast import AnswerLogProbs
from mechstudy.behaviours.schema import PromptPair
from mechstudy.interventions.continued import answer_logprobs, continued_tokens
from mechstudy.interventions.engine import AddVector, CleanRun, ReplaceVector, RowEdit, site_edits
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.prefix import KeptRun, keep_run, run_last_tokens
from mechstudy.models.sites import Site

VectorEdit = AddVector | ReplaceVector


def patched_logits(
    model: LanguageModel, kept: KeptRun, rows: Sequence[int], edits: Sequence[Sequence[RowEdit]]
) -> Tensor:
    """Logits of a kept run's prompts ``rows``, each with its own edits: [rows, V], or [rows, n, V] as the kept run's.

    Rows that start at the same token run together, each from its own layer. They equal whole runs up to rounding; where
    nothing changes (no edit, what the residual stream holds already, what nothing reads) logits are the clean run's to
    the bit.

    Args:
        model: the model of ``kept``.
        kept: the clean run.
        rows: the number of each row's prompt in it.
        edits: what is written into each row, vectors only.
    """
    logits = kept.logits_BV[torch.tensor(list(rows), device=kept.logits_BV.device)]
    groups: dict[int, list[tuple[int, int]]] = defaultdict(list)  # by first token: first layers and numbers of rows
    placed = [[_at_input(model, edit) for edit in own] for own in edits]
    for number, (row, own) in enumerate(zip(rows, placed, strict=True)):
        if not all(_changes_nothing(kept, row, edit) for edit in own):
            groups[min(e.position for e in own)].append((_first_layer(model, own), number))
    for position, members in groups.items():
        layers, numbers = zip(*sorted(members), strict=True)
        moved = [[replace(e, position=e.position - position) for e in placed[number]] for number in numbers]
        logits[list(numbers)] = run_last_tokens(
            model, kept, [rows[number] for number in numbers], layers, position, site_edits({}, moved)
        )
    return logits


def _at_input(model: LanguageModel, edit: RowEdit) -> VectorEdit:
    """The edit, of the next block's input instead of a block's output: that block need not run then."""
    assert isinstance(edit, AddVector | ReplaceVector), edit
    if edit.site.kind != "resid_post" or edit.site.layer + 1 == model.n_layers:
        return edit
    return replace(edit, site=Site("resid_pre", edit.site.layer + 1))


def _first_layer(model: LanguageModel, edits: Sequence[VectorEdit]) -> int:
    """The first block that must run; the number of blocks where the last one's output is all that is edited."""
    return min(model.n_layers if e.site.kind == "resid_post" else e.site.layer for e in edits)


def _changes_nothing(kept: KeptRun, row: int, edit: VectorEdit) -> bool:
    """Whether the residual stream holds already what is written, or nothing reads it: the last block's output."""
    if edit.site.kind == "resid_post":
        read = 1 if kept.logits_at == "last" else int(kept.logits_at)
        if edit.position < kept.tokens_BT.shape[1] - read:
            return True
    if isinstance(edit, AddVector) or edit.site.kind not in ("resid_pre", "resid_post"):
        return False
    held_D = kept.resid[edit.site.layer + (edit.site.kind == "resid_post")][row, edit.position]
    return torch.equal(held_D, edit.vector_D.to(held_D))


@dataclass(frozen=True)
class _Kept:
    """Clean runs of pairs, and of their prompts continued by the right and the wrong answers where these are wholes."""

    pairs: Sequence[PromptPair]
    run: KeptRun
    sides: Sequence[KeptRun | None] | None

    def answers(self, rows: Sequence[int], logits: Sequence[Tensor]) -> AnswerLogProbs:
        """What logits of the two sides say of the answers of pairs ``rows``."""
        right, wrong = _answers([self.pairs[row] for row in rows])
        return AnswerLogProbs(answer_logprobs(logits[0], right), answer_logprobs(logits[1], wrong))


class LastTokenRuns:
    """Patched runs of pairs of one length; the clean run of the last pairs asked for is kept."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._kept: _Kept | None = None

    def run(
        self, pairs: Sequence[PromptPair], edits: Sequence[Sequence[RowEdit]]
    ) -> tuple[CleanRun, Tensor, tuple[AnswerLogProbs, AnswerLogProbs] | None]:
        """Run one pair's clean prompt per row, with the row's edits.

        Returns:
            The clean run of the rows (without residuals), the logits of the patched rows and, where whole answers are
            compared, what the clean and the patched run say of them.
        """
        number = {pair.id: i for i, pair in enumerate({pair.id: pair for pair in pairs}.values())}
        kept = self._clean(list({pair.id: pair for pair in pairs}.values()))
        rows = [number[pair.id] for pair in pairs]
        logits = patched_logits(self.model, kept.run, rows, edits)
        clean = CleanRun(kept.run.tokens_BT[rows], {}, kept.run.logits_BV[rows])
        if kept.sides is None:
            return clean, logits, None
        unpatched = [clean.logits_BV if side is None else side.logits_BV[rows] for side in kept.sides]
        patched = [
            logits if side is None else patched_logits(self.model, side, rows, edits) for side in kept.sides
        ]  # fmt: skip
        return clean, logits, (kept.answers(rows, unpatched), kept.answers(rows, patched))

    def _clean(self, pairs: list[PromptPair]) -> _Kept:
        if self._kept is None or self._kept.pairs != pairs:
            self._kept = None  # frees the runs of other pairs first
            run = keep_run(self.model, torch.tensor([pair.clean_tokens for pair in pairs]))
            sides = [self._continued(pairs, answers) for answers in _answers(pairs)] if pairs[0].whole_answers else None
            self._kept = _Kept(pairs, run, sides)
        return self._kept

    def _continued(self, pairs: Sequence[PromptPair], answers: Sequence[tuple[int, ...]]) -> KeptRun | None:
        if len(answers[0]) == 1:
            return None
        tokens_BT = continued_tokens([pair.clean_tokens for pair in pairs], answers)
        return keep_run(self.model, tokens_BT, logits_at=len(answers[0]))


def _answers(pairs: Sequence[PromptPair]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    return [pair.answer_tokens for pair in pairs], [pair.wrong_tokens for pair in pairs]
