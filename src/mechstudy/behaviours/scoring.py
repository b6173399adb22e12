"""How well a model shows a behaviour: log-probabilities, logit differences and ranks, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from mechstudy.behaviours.contrast import Contrast, token_logprobs
from mechstudy.behaviours.schema import PromptPair
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.machine.runtime import oom_backoff
from mechstudy.models.batches import length_buckets
from mechstudy.models.language_model import LanguageModel

_LogProbs = dict[tuple[int, tuple[int, ...]], Tensor]  # of an answer's tokens, by pair and answer
_Run = tuple[int, tuple[int, ...], tuple[int, ...]]  # index of the pair, prompt, answer


@dataclass(frozen=True)
class Score:
    """One clean prompt's result.

    Log-probabilities are natural, teacher-forced, and of whole answers, which ``correct`` compares too: of several
    answers, that of any of them. ``logit_difference`` is what graphs and interventions explain: the `Contrast` of the
    answers' first tokens or, where whole answers are compared, the difference of their log-probabilities, whose tokens'
    shares are then in ``token_logprobs_answer`` and ``token_logprobs_wrong``. ``rank_answer`` counts from 1 and is that
    of the best right answer; ``prob_answer`` adds up the right first tokens.
    """

    id: str
    template: str
    group: str
    logprob_answer: float
    logprob_wrong: float
    logit_difference: float
    rank_answer: int
    correct: bool
    top_token: str
    prob_answer: float
    token_logprobs_answer: tuple[float, ...] | None = None
    token_logprobs_wrong: tuple[float, ...] | None = None

    def row(self) -> dict[str, object]:
        """The fields as a row of a table, with ``correct`` as 0 or 1 and tokens' shares as numbers with spaces."""
        row = asdict(self) | {"correct": int(self.correct)}
        shares = {name: row.pop(name) for name in ("token_logprobs_answer", "token_logprobs_wrong")}
        return row | {name: " ".join(map(repr, each)) for name, each in shares.items() if each is not None}


def score_pairs(
    model: LanguageModel,
    pairs: Sequence[PromptPair],
    *,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[Score]:
    """Scores of the clean prompts, in order.

    Args:
        model: the model.
        pairs: prompt pairs tokenised for this model.
        batch_tokens: tokens per forward pass.
        progress: reports sequences.
    """
    progress = progress or NullProgress()
    sequences = [(i, pair.clean_tokens, answer) for i, pair in enumerate(pairs) for answer in _answers(pair)]
    logprobs: _LogProbs = {}
    first: dict[int, Tensor] = {}
    lengths = [len(prompt) + len(answer) - 1 for _, prompt, answer in sequences]
    with progress.bar("baseline", len(sequences), "sequences") as bar:
        for members in length_buckets(lengths, batch_tokens):
            chosen = [sequences[m] for m in members]
            for logits_TV, (i, prompt, answer) in zip(_logits(model, chosen, progress), chosen, strict=True):
                at = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
                logprobs[i, answer] = token_logprobs(logits_TV[at], answer)
                first[i] = logits_TV[len(prompt) - 1]
            bar.advance(len(members))
    return [_score(model, pair, first[i], logprobs, i) for i, pair in enumerate(pairs)]


def _answers(pair: PromptPair) -> tuple[tuple[int, ...], ...]:
    """Answers that need a forward pass: those of several tokens; one if each is a single token.

    A pair with one right and one wrong answer needs both as soon as one has several tokens.
    """
    every = (*pair.all_answer_tokens, *pair.all_wrong_tokens)
    several = tuple(tokens for tokens in every if len(tokens) > 1)
    if not several:
        return (pair.answer_tokens,)
    return every if pair.answer_sets is None else tuple(dict.fromkeys((pair.answer_tokens, *several)))


def _logits(model: LanguageModel, chosen: Sequence[_Run], progress: Progress) -> list[Tensor]:
    tokens = torch.tensor([[*prompt, *answer[:-1]] for _, prompt, answer in chosen])

    def forward(size: int) -> list[Tensor]:
        parts = [model.forward(part, logits_at="all").logits for part in torch.split(tokens, size)]
        return [row.cpu() for part in parts if part is not None for row in part]

    return oom_backoff(forward, len(tokens), progress, item_tokens=tokens.shape[1])


def _score(
    model: LanguageModel,
    pair: PromptPair,
    logits_V: Tensor,
    logprobs: _LogProbs,
    i: int,
) -> Score:
    wide = logits_V.double()
    log_probs = torch.log_softmax(wide, -1)
    contrast = Contrast.of_pair(pair)

    def shares(tokens: tuple[int, ...]) -> Tensor:
        return logprobs.get((i, tokens), log_probs[tokens[0]][None])

    def of_any(answers: Sequence[tuple[int, ...]]) -> float:
        each = [float(shares(tokens).sum()) for tokens in _disjoint(answers)]
        return each[0] if len(each) == 1 else float(torch.tensor(each, dtype=torch.float64).logsumexp(0))

    of_answer, of_wrong = of_any(pair.all_answer_tokens), of_any(pair.all_wrong_tokens)
    right = list(contrast.right)
    return Score(
        id=pair.id,
        template=pair.template,
        group=pair.group,
        logprob_answer=of_answer,
        logprob_wrong=of_wrong,
        logit_difference=of_answer - of_wrong if pair.whole_answers else float(contrast.value(wide)),
        rank_answer=int((wide > wide[right].max()).sum()) + 1,
        correct=of_answer > of_wrong,
        top_token=model.token_strings([int(wide.argmax())])[0],
        prob_answer=float(log_probs[right].exp().sum()),
        token_logprobs_answer=tuple(shares(pair.answer_tokens).tolist()) if pair.whole_answers else None,
        token_logprobs_wrong=tuple(shares(pair.wrong_tokens).tolist()) if pair.whole_answers else None,
    )


def _disjoint(answers: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The answers without those that continue another one, whose probability is part of that one's."""
    each = tuple(dict.fromkeys(answers))
    return [a for a in each if not any(a != other and a[: len(other)] == other for other in each)]
