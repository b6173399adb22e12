"""What a graph explains: a prompt's tokens, and the two answers whose logits are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mechstudy.behaviours.schema import PromptPair
from mechstudy.behaviours.tokenise import Tokens, Unsuitable, continuation, require_open_end
from mechstudy.core.errors import MechstudyError
from mechstudy.models.language_model import LanguageModel


@dataclass(frozen=True)
class Question:
    """A tokenised prompt; ``answers`` are the first tokens of the right and the wrong answer.

    Without answers the top outputs are explained. ``names`` are the answers' texts, ``positions`` named token indices.
    """

    prompt: str
    tokens: tuple[int, ...]
    answers: tuple[int, int] | None = None
    names: tuple[str | None, str | None] = (None, None)
    positions: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_pair(cls, pair: PromptPair) -> Question:
        """The clean prompt of a pair, with its answers."""
        answers = (pair.answer_tokens[0], pair.wrong_tokens[0])
        return cls(pair.clean, pair.clean_tokens, answers, (pair.answer, pair.wrong_answer), pair.positions)

    @classmethod
    def of_text(
        cls,
        model: LanguageModel,
        prompt: str,
        answer: str | None = None,
        wrong_answer: str | None = None,
        *,
        instruction: str | None = None,
    ) -> Question:
        """A prompt as text, with both answers or none.

        Raises:
            MechstudyError: an empty prompt; one answer without the other; an answer of several tokens, or one that the
                tokenizer merges with the prompt; both answers the same.
        """
        tokens = Tokens(lambda text: model.encode(text, instruction=instruction))
        if not prompt or not tokens(prompt):
            raise MechstudyError("the prompt is empty", fix='a text such as "The keys to the cabinet"')
        if answer is None and wrong_answer is None:
            return cls(prompt, tokens(prompt))
        if answer is None or wrong_answer is None:
            missing = "answer" if answer is None else "wrong_answer"
            raise MechstudyError(
                f"a logit difference needs both answers, and {missing} is missing",
                fix=f"{missing}=..., or neither: then the top outputs are explained",
            )
        require_open_end(tokens)
        right, wrong = (_only_token(model, tokens, prompt, text) for text in (answer, wrong_answer))
        if right == wrong:
            raise MechstudyError(
                f"answers {answer!r} and {wrong_answer!r} are the same token", fix="two different answers"
            )
        return cls(prompt, tokens(prompt), (right, wrong), (answer, wrong_answer))


def _only_token(model: LanguageModel, tokens: Tokens, prompt: str, answer: str) -> int:
    try:
        ids = continuation(tokens, prompt, answer)
    except Unsuitable as error:
        raise MechstudyError(error.what, fix=error.fix) from error
    if len(ids) > 1:
        strings = model.token_strings(ids)
        raise MechstudyError(
            f"answer {answer!r} is {len(ids)} tokens, and a graph explains one",
            facts={"tokens": " | ".join(map(repr, strings))},
            fix=f"its first token: {strings[0]!r}",
        )
    return ids[0]
