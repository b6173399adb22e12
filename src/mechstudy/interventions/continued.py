"""Prompts continued by whole answers: clean and edited runs, and the log-probabilities of the answers' tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from mechstudy.behaviours.contrast import AnswerLogProbs, token_logprobs
from mechstudy.behaviours.schema import PromptPair
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.engine import CleanRun, RowEdit, clean_run, edited_run
from mechstudy.models.language_model import LanguageModel

Answer = tuple[int, ...]


@dataclass(frozen=True)
class Continued:
    """Clean ``runs`` of prompts with all but the last token of the right, and of the wrong, answers.

    None for answers of one token, which the prompts' own run covers. ``answers`` is what these runs say of the answers.
    """

    runs: Sequence[CleanRun | None]
    answers: AnswerLogProbs


def answer_kind(pair: PromptPair) -> tuple[int, int]:
    """The tokens of both answers where they count as wholes, else zeros: pairs of one kind may share a batch."""
    return (len(pair.answer_tokens), len(pair.wrong_tokens)) if pair.whole_answers else (0, 0)


def continued_tokens(prompts: Iterable[Answer], answers: Iterable[Answer]) -> Tensor:
    """Token ids [B, T] of prompts with all but the last token of their answers."""
    return torch.tensor([[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)])


def answer_logprobs(logits: Tensor, answers: Sequence[Answer]) -> Float64[Tensor, "b t"]:
    """Log-probabilities of answers of T tokens, from logits [B, T, V], or [B, V] for one token."""
    logits_BTV = logits[:, None] if logits.dim() == 2 else logits
    return torch.stack([token_logprobs(*row) for row in zip(logits_BTV, answers, strict=True)])


def continued_runs(
    model: LanguageModel, pairs: Sequence[PromptPair], clean: CleanRun, starts: Iterable[int]
) -> Continued:
    """Clean runs of the pairs' clean prompts, continued by each of their answers, which have one kind.

    Args:
        clean: that of the prompts alone.
    """
    runs: list[CleanRun | None] = []
    for answers in _sides(pairs):
        n = len(answers[0])
        tokens_BT = continued_tokens([pair.clean_tokens for pair in pairs], answers)
        runs.append(None if n == 1 else clean_run(model, tokens_BT, starts, logits_at=n))
    logits = [clean.logits_BV if run is None else run.logits_BV for run in runs]
    return Continued(runs, AnswerLogProbs(*map(answer_logprobs, logits, _sides(pairs))))


def edited_answers(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    continued: Continued,
    edits: Sequence[Sequence[RowEdit]],
    logits_BV: Tensor,
    pairs: Sequence[PromptPair],
) -> AnswerLogProbs:
    """What edited runs say of the answers; edits are of the prompts' tokens.

    Args:
        logits_BV: of the edited runs of the prompts alone.
    """
    sides = []
    for run, answers in zip(continued.runs, _sides(pairs), strict=True):
        logits = logits_BV if run is None else edited_run(model, dictionaries, run, edits).logits
        assert logits is not None
        sides.append(answer_logprobs(logits, answers))
    return AnswerLogProbs(*sides)


def _sides(pairs: Sequence[PromptPair]) -> tuple[list[Answer], list[Answer]]:
    return [pair.answer_tokens for pair in pairs], [pair.wrong_tokens for pair in pairs]
