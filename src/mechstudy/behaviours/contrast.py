"""The number that compares right answers with wrong ones: of one logit each, of sets of them, of all their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mechstudy.behaviours.metrics import DIFFERENCE, OF_SETS
from mechstudy.behaviours.schema import AnswerSets, PromptPair, n_shared


@dataclass(frozen=True)
class Contrast:
    """Right and wrong first tokens, each once, whose logits are compared at the next token.

    ``combine`` makes one number of a side's logits: ``logsumexp``, so that the contrast is log p(any right one) - log
    p(any wrong one), or ``mean``. With one token a side both are the logit difference.
    """

    right: tuple[int, ...]
    wrong: tuple[int, ...]
    combine: AnswerSets = "logsumexp"

    @classmethod
    def of_pair(cls, pair: PromptPair) -> Contrast:
        """The contrast of a pair's answers."""
        combine = "logsumexp" if pair.answer_sets is None else pair.answer_sets.combine
        return cls.of_answers(pair.all_answer_tokens, pair.all_wrong_tokens, combine)

    @classmethod
    def of_answers(
        cls, right: Iterable[Sequence[int]], wrong: Iterable[Sequence[int]], combine: AnswerSets = "logsumexp"
    ) -> Contrast:
        """The contrast of tokenised answers; those that begin with the same token count once."""
        first = [tuple(dict.fromkeys(tokens[0] for tokens in side)) for side in (right, wrong)]
        return cls(first[0], first[1], combine)

    @property
    def is_single(self) -> bool:
        """Whether there is one right and one wrong token."""
        return len(self.right) == len(self.wrong) == 1

    @property
    def is_linear(self) -> bool:
        """Whether the contrast is linear in the logits."""
        return self.is_single or self.combine == "mean"

    @property
    def name(self) -> str:
        """Its name, as it stands in results."""
        return DIFFERENCE if self.is_single else OF_SETS[self.combine]

    def value(self, logits_V: Float[Tensor, " v"]) -> Float64[Tensor, ""]:
        """The contrast of one row of logits; gradients flow through it."""
        return contrasts(logits_V[None], [self])[0]

    def change(self, before_V: Float[Tensor, " v"], after_V: Float[Tensor, " v"]) -> float:
        """``value(before) - value(after)``; a linear contrast is taken of the difference, which rounds less."""
        if self.is_linear:
            return float(self.value(before_V.double() - after_V.double()))
        return float(self.value(before_V) - self.value(after_V))


def contrasts(logits_BV: Float[Tensor, "b v"], of_row: Sequence[Contrast]) -> Float64[Tensor, " b"]:
    """The contrast of every row of logits."""
    sides = []
    for tokens in ([c.right for c in of_row], [c.wrong for c in of_row]):
        width = max(map(len, tokens))
        index_BM = torch.tensor([[*t, *[t[0]] * (width - len(t))] for t in tokens], device=logits_BV.device)
        n_B = torch.tensor([len(t) for t in tokens], device=logits_BV.device)
        z_BM = logits_BV.gather(1, index_BM).double()
        if width == 1:
            sides.append(z_BM[:, 0])
            continue
        member_BM = torch.arange(width, device=logits_BV.device) < n_B[:, None]
        lse_B = z_BM.masked_fill(~member_BM, -torch.inf).logsumexp(1)
        mean_B = z_BM.masked_fill(~member_BM, 0.0).sum(1) / n_B
        is_mean_B = torch.tensor([c.combine == "mean" for c in of_row], device=logits_BV.device)
        sides.append(torch.where(is_mean_B, mean_B, lse_B))
    return sides[0] - sides[1]


@dataclass(frozen=True)
class WholeAnswers:
    """All tokens of a right and a wrong answer, compared by their teacher-forced log-probabilities after a prompt."""

    right: tuple[int, ...]
    wrong: tuple[int, ...]

    @classmethod
    def of_pair(cls, pair: PromptPair) -> WholeAnswers | None:
        """The whole answers of a pair; None where only first tokens are compared."""
        return cls(pair.answer_tokens, pair.wrong_tokens) if pair.whole_answers else None

    @property
    def departure(self) -> int:
        """The index of the first token in which the answers differ."""
        return n_shared(self.right, self.wrong)


@dataclass(frozen=True)
class AnswerLogProbs:
    """Log-probabilities of the tokens of right and wrong answers after the prompts of a batch, [B, tokens] each."""

    right_BT: Tensor
    wrong_BT: Tensor

    def differences(self) -> Float64[Tensor, " b"]:
        """Log p(right answer) - log p(wrong answer) of every row."""
        return self.right_BT.sum(1) - self.wrong_BT.sum(1)

    def to_departure(self, row: int, departure: int) -> float:
        """Log p(right answer) - log p(wrong answer's tokens up to the first that differs), as graphs explain it."""
        return float(self.right_BT[row].sum() - self.wrong_BT[row, : departure + 1].sum())


def token_logprobs(logits_TV: Float[Tensor, "t v"], answer: Sequence[int]) -> Float64[Tensor, " t"]:
    """The log-probability of each token of an answer, from the logits that predict it."""
    return torch.log_softmax(logits_TV.double(), -1)[torch.arange(len(answer)), list(answer)]
