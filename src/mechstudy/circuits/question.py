"""What a graph explains: a prompt's tokens, and the answers that are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mechstudy.behaviours.contrast import Contrast, WholeAnswers
from mechstudy.behaviours.metrics import DIFFERENCE, WHOLE, metric_name
from mechstudy.behaviours.schema import AnswerSets, PromptPair, aligned
from mechstudy.behaviours.tokenise import (
    Tokens,
    Unsuitable,
    continuation,
    only_token,
    pair_tokens,
    require_known,
    require_open_end,
    texts_of,
)
from mechstudy.circuits.custom_targets import own_target
from mechstudy.circuits.targets import AnswerContrast, AnswerTokens, Explained
from mechstudy.core.errors import MechstudyError
from mechstudy.models.language_model import LanguageModel


@dataclass(frozen=True)
class Question:
    """A tokenised prompt, and what is ``explained``; None explains the top outputs.

    ``right`` and ``wrong`` are the answers' texts, ``metric`` the name of what compares them, ``positions`` named token
    indices. ``corrupted`` are the tokens of the pair's corrupted prompt (and of the answer, where it is read), and
    ``corrupted_at`` where in it each of ``tokens`` has its place (`PromptPair.corrupted_at`); empty without one.
    """

    prompt: str
    tokens: tuple[int, ...]
    explained: Explained | None = None
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    metric: str = DIFFERENCE
    positions: Mapping[str, int] = field(default_factory=dict)
    corrupted: tuple[int, ...] = ()
    corrupted_at: tuple[int | None, ...] = ()

    @property
    def n_prompt(self) -> int:
        """The number of tokens before those of an answer."""
        n_answer = len(self.explained.answers.right) - 1 if isinstance(self.explained, AnswerTokens) else 0
        return len(self.tokens) - n_answer

    def against(self, model: LanguageModel, corrupted: str, instruction: str | None = None) -> Question:
        """The same with a corrupted prompt as text; its tokens are aligned as `PromptPair.corrupted_at` aligns them.

        Raises:
            MechstudyError: the corrupted prompt is empty, or mostly unknown to the tokenizer.
        """
        encode = _tokens_of(model, instruction)
        tokens = encode(corrupted) if corrupted else ()
        if not tokens:
            raise MechstudyError("the corrupted prompt is empty", fix='a text such as "The key to the cabinet"')
        _require_known(encode, corrupted, "the corrupted prompt")
        clean, answer = self.tokens[: self.n_prompt], self.tokens[self.n_prompt :]
        places = [aligned(clean, tokens, i) for i in range(len(clean))]
        n = len(tokens)
        return replace(self, corrupted=(*tokens, *answer), corrupted_at=(*places, *range(n, n + len(answer))))

    @property
    def counterpart(self) -> tuple[int, ...]:
        """The corrupted tokens, one for each of ``tokens``.

        Raises:
            MechstudyError: there is no corrupted prompt, or it has another number of tokens.
        """
        if not self.corrupted:
            raise MechstudyError(
                f"the graph of a difference needs a corrupted prompt, and {self.prompt!r} has none",
                fix="corrupted=..., a prompt pair with one, or explains: clean",
            )
        if self.corrupted_at != tuple(range(len(self.corrupted))):
            raise MechstudyError(
                f"{self.prompt!r} has {len(self.tokens)} tokens and its corrupted prompt {len(self.corrupted)}: no "
                "path on which a ledger closes leads from one to the other",
                fix="pairs of equal length, or explains: clean",
            )
        return self.corrupted

    @property
    def about(self) -> dict[str, Any]:
        """The answers, as the graph's file has them, and the metric unless it is the difference of two logits."""
        first: dict[str, Any] = {"answer": next(iter(self.right), None), "wrong_answer": next(iter(self.wrong), None)}
        if len(self.right) + len(self.wrong) > 2:
            first |= {"answers": list(self.right), "wrong_answers": list(self.wrong)}
        stated = self.explained is not None and self.metric != DIFFERENCE
        return first | ({"metric": self.metric} if stated else {})

    @classmethod
    def of_pair(cls, pair: PromptPair, *, continued: bool = True) -> Question:
        """The clean prompt of a pair, with its answers.

        Args:
            continued: where whole answers are compared, the tokens of the right one but its last are read too.
                Otherwise first tokens are compared; nothing, if they are the same.
        """
        tokens: tuple[int, ...] = pair.clean_tokens
        explained: Explained | None = _explained(pair)
        if (whole := WholeAnswers.of_pair(pair)) is not None and continued:
            tokens, explained = (*tokens, *whole.right[:-1]), AnswerTokens(whole)
        return cls(
            pair.clean,
            tokens,
            explained,
            pair.all_answers,
            pair.all_wrong_answers,
            metric_name([pair]),
            pair.positions,
            *_corrupted(pair, tokens[len(pair.clean_tokens) :]),
        )

    @classmethod
    def of_text(
        cls,
        model: LanguageModel,
        prompt: str,
        answer: str | Sequence[str] | None = None,
        wrong_answer: str | Sequence[str] | None = None,
        *,
        answer_sets: AnswerSets = "logsumexp",
        answer_tokens: Literal["first", "all"] = "first",
        instruction: str | None = None,
    ) -> Question:
        """A prompt as text, with right and wrong answers or neither.

        Raises:
            MechstudyError: an empty prompt; right answers without wrong ones; an answer that the tokenizer merges with
                the prompt, or one of several tokens unless ``answer_tokens`` is ``all``; an answer that is both right
                and wrong.
        """
        tokens = _tokens_of(model, instruction)
        if not prompt or not tokens(prompt):
            raise MechstudyError("the prompt is empty", fix='a text such as "The keys to the cabinet"')
        _require_known(tokens, prompt)
        if answer is None and wrong_answer is None:
            return cls(prompt, tokens(prompt))
        if answer is None or wrong_answer is None:
            missing = "answer" if answer is None else "wrong_answer"
            raise MechstudyError(
                f"a logit difference needs both answers, and {missing} is missing",
                fix=f"{missing}=..., or neither: then the top outputs are explained",
            )
        require_open_end(tokens)
        sides = texts_of(answer), texts_of(wrong_answer)
        if not all(sides):
            raise MechstudyError("a list of answers is empty", fix='answer=[" are", " were"], wrong_answer=" is"')
        if answer_tokens == "all":
            return cls._whole(tokens, prompt, sides)
        right, wrong = ({_only_token(model, tokens, prompt, text): text for text in side} for side in sides)
        for token in right.keys() & wrong.keys():
            raise MechstudyError(
                f"answers {right[token]!r} and {wrong[token]!r} are the same token", fix="two different answers"
            )
        contrast = Contrast(tuple(right), tuple(wrong), answer_sets)
        return cls(prompt, tokens(prompt), AnswerContrast(contrast), *sides, contrast.name)

    @classmethod
    def of_target(
        cls,
        model: LanguageModel,
        prompt: str | PromptPair,
        target: object,
        position: int | str = "last",
        *,
        instruction: str | None = None,
    ) -> Question:
        """A prompt with a direction of the final normed residual, or a function of the logits, at one position.

        Args:
            target: a tensor [d_model], or a function from logits [vocabulary] to a scalar tensor.
            position: ``last``, a token's index (negative: from the end), or a position that the pair names.

        Raises:
            MechstudyError: an empty prompt, a target of another shape or kind, or no such position.
        """
        corrupted: tuple[tuple[int, ...], tuple[int | None, ...]] = (), ()
        if isinstance(prompt, PromptPair):
            text, tokens, named = prompt.clean, prompt.clean_tokens, prompt.positions
            corrupted = _corrupted(prompt)
        else:
            text, named = prompt, {}
            encode = _tokens_of(model, instruction)
            tokens = encode(prompt) if prompt else ()
            _require_known(encode, prompt)
        if not tokens:
            raise MechstudyError("the prompt is empty", fix='a text such as "The keys to the cabinet"')
        n, names = len(tokens), {**named, "last": len(tokens) - 1}
        index = names.get(position) if isinstance(position, str) else position % n if -n <= position < n else None
        if index is None:
            raise MechstudyError(
                f"the prompt has no position {position!r}",
                facts={"positions": ", ".join(names)},
                fix=f"one of these, or an index from 0 to {n - 1}",
            )
        explained = own_target(model, target, n - index)
        return cls(text, tokens, explained, (), (), explained.label, named, *corrupted)

    @classmethod
    def _whole(cls, tokens: Tokens, prompt: str, sides: tuple[tuple[str, ...], tuple[str, ...]]) -> Question:
        if len(sides[0]) + len(sides[1]) > 2:
            raise MechstudyError("whole answers are compared one with one", fix='answer_tokens="first", or one of each')
        try:
            ids = pair_tokens(tokens, prompt, None, *sides, whole=True)
        except Unsuitable as error:
            raise MechstudyError(error.what, fix=error.fix) from error
        whole = WholeAnswers(ids.answer, ids.wrong)
        return cls(prompt, (*ids.clean, *ids.answer[:-1]), AnswerTokens(whole), *sides, WHOLE)


def _corrupted(pair: PromptPair, answer: tuple[int, ...] = ()) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
    """The corrupted prompt's tokens and an answer's, and the place in them of each clean token and of the answer's."""
    if not pair.has_corrupted:
        return (), ()
    places = [pair.corrupted_at(i) for i in range(len(pair.clean_tokens))]
    n = len(pair.corrupted_tokens)
    return (*pair.corrupted_tokens, *answer), (*places, *range(n, n + len(answer)))


def _explained(pair: PromptPair) -> AnswerContrast | None:
    contrast = Contrast.of_pair(pair)
    return None if set(contrast.right) & set(contrast.wrong) else AnswerContrast(contrast)


def _tokens_of(model: LanguageModel, instruction: str | None) -> Tokens:
    return Tokens(lambda text: model.encode(text, instruction=instruction), model.unknown_token)


def _require_known(tokens: Tokens, prompt: str, name: str = "the prompt") -> None:
    try:
        require_known(tokens, name, prompt)
    except Unsuitable as error:
        raise MechstudyError(error.what, fix=error.fix) from error


def _only_token(model: LanguageModel, tokens: Tokens, prompt: str, answer: str) -> int:
    try:
        ids = continuation(tokens, prompt, answer)
    except Unsuitable as error:
        raise MechstudyError(error.what, fix=error.fix) from error
    strings = model.token_strings(ids)
    return only_token(ids, strings, f"answer {answer!r}", "a graph explains one", '; or answer_tokens="all"')
