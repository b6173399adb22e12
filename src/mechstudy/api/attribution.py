"""From the text of a prompt to a graph that draws itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from mechstudy.api.graphs import PromptGraph
from mechstudy.behaviours.schema import AnswerSets, PromptPair
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.prompt_graph import explain_question
from mechstudy.circuits.question import Question
from mechstudy.core.progress import Progress
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.models.language_model import LanguageModel


def attribute(
    model: LanguageModel,
    dictionaries: Mapping[int, Dictionary],
    prompt: str | PromptPair,
    *,
    answer: str | Sequence[str] | None = None,
    wrong_answer: str | Sequence[str] | None = None,
    answer_sets: AnswerSets = "logsumexp",
    answer_tokens: Literal["first", "all"] = "first",
    instruction: str | None = None,
    config: AttributionConfig | None = None,
    progress: Progress | None = None,
) -> PromptGraph:
    """The attribution graph of one prompt: which features, through which others, make the model's answer.

        graph = ms.attribute(model, dicts, "The keys to the cabinet", answer=" are", wrong_answer=" is")
        graph = ms.attribute(model, dicts, "The capital of France is")  # explains the top outputs

    Args:
        model: in float32 or wider.
        dictionaries: transcoders by layer; a layer without one enters as errors.
        prompt: text; or a prompt pair, whose clean prompt and answers are used.
        answer: the answer as it follows the prompt, with its leading space: one token. Several as a list.
        wrong_answer: the one to compare it with, or several. With both, logit(answer) - logit(wrong_answer) is
            explained; without, the top outputs.
        answer_sets: how the logits of several answers are combined: ``logsumexp``, explained to first order (the
            weights within a set are those of this prompt), or their ``mean``.
        answer_tokens: ``all`` explains the log-probabilities of the right answer's tokens, teacher-forced, against the
            wrong answer's up to where the two part (`circuits.AnswerTokens`), with a ledger for each token.
        instruction: the user's turn of the model's chat template, which the prompt then begins to answer.
        config: the number of features with a row of their own, and the thresholds of pruning.
        progress: receives messages.

    Raises:
        MechstudyError: an empty prompt; one answer without the other; an answer of several tokens (unless
            ``answer_tokens`` is ``all``), or one that the tokenizer merges with the prompt; an answer both right and
            wrong; dictionaries that are not transcoders.
    """
    question = (
        Question.of_pair(prompt)
        if isinstance(prompt, PromptPair)
        else Question.of_text(
            model,
            prompt,
            answer,
            wrong_answer,
            answer_sets=answer_sets,
            answer_tokens=answer_tokens,
            instruction=instruction,
        )
    )
    return PromptGraph(
        *explain_question(model, dictionaries, question, config or AttributionConfig(), progress=progress)
    )
