"""Names of what compares the answers of prompts, as they stand in results. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable

from mechstudy.behaviours.schema import AnswerSets, PromptPair

DIFFERENCE = "logit difference"
OF_SETS: dict[AnswerSets, str] = {
    "logsumexp": "difference of log-sum-exp logits",
    "mean": "difference of mean logits",
}
WHOLE = "difference of whole answers' log-probabilities"


def metric_name(pairs: Iterable[PromptPair]) -> str:
    """The name of what compares the answers of these pairs."""
    pairs = list(pairs)
    if any(pair.whole_answers for pair in pairs):
        return WHOLE
    combine = [pair.answer_sets.combine for pair in pairs if pair.answer_sets is not None]
    return OF_SETS[min(combine)] if combine else DIFFERENCE
