"""Contrastive prompt pairs, and their files: JSON Lines, one pair per line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import model_validator

from mechstudy.core.config import Config
from mechstudy.core.errors import MechstudyError

Encode = Callable[[str], list[int]]
"""Text to token ids, with a BOS token where the model needs one (`LanguageModel.encode`)."""

AnswerSets = Literal["logsumexp", "mean"]
"""How the logits of several right (or several wrong) answers become one number."""

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


class Answers(Config):
    """Several right and several wrong answers of a pair, each side with its first, which the pair names alone too.

    ``combine`` says how the logits of a side's first tokens become one number: ``logsumexp``, with which the metric is
    log p(any right one) - log p(any wrong one), or their ``mean``.
    """

    combine: AnswerSets
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    right_tokens: tuple[tuple[int, ...], ...]
    wrong_tokens: tuple[tuple[int, ...], ...]


class PromptPair(Config):
    """A clean and a corrupted prompt, and their answers.

    The right answer is ``answer`` to the clean prompt and ``wrong_answer`` to the corrupted one. Both are written as
    they follow the prompt, with their leading space. The two prompts have equal numbers of tokens, so a token index in
    ``positions`` is the same place in both, unless ``corrupted_positions`` says where a name is in the corrupted one. A
    pair without a corrupted prompt has an empty one. A pair with several right or wrong answers has all of them in
    ``answer_sets``; one with ``whole_answers`` is about all tokens of its answers, which may begin alike.

    Raises:
        ValueError: unequal lengths without ``corrupted_positions``, a position outside the prompt, or a right and a
            wrong answer with the same first token (whole answers: of which one begins with the other).
    """

    optional: ClassVar[frozenset[str]] = frozenset({"corrupted_positions", "answer_sets", "whole_answers"})

    id: str
    template: str
    group: str
    """Cluster for the bootstrap (template and lexical item): pairs of one group are not independent."""
    clean: str
    corrupted: str
    answer: str
    wrong_answer: str
    positions: dict[str, int]
    clean_tokens: tuple[int, ...]
    corrupted_tokens: tuple[int, ...]
    answer_tokens: tuple[int, ...]
    wrong_tokens: tuple[int, ...]
    corrupted_positions: dict[str, int] | None = None
    answer_sets: Answers | None = None
    whole_answers: Literal[True] | None = None

    @property
    def all_answers(self) -> tuple[str, ...]:
        """Every right answer."""
        return (self.answer,) if self.answer_sets is None else self.answer_sets.right

    @property
    def all_wrong_answers(self) -> tuple[str, ...]:
        """Every wrong answer."""
        return (self.wrong_answer,) if self.answer_sets is None else self.answer_sets.wrong

    @property
    def all_answer_tokens(self) -> tuple[tuple[int, ...], ...]:
        """The tokens of every right answer."""
        return (self.answer_tokens,) if self.answer_sets is None else self.answer_sets.right_tokens

    @property
    def all_wrong_tokens(self) -> tuple[tuple[int, ...], ...]:
        """The tokens of every wrong answer."""
        return (self.wrong_tokens,) if self.answer_sets is None else self.answer_sets.wrong_tokens

    @property
    def has_corrupted(self) -> bool:
        """Whether there is a corrupted prompt."""
        return bool(self.corrupted_tokens)

    def corrupted_at(self, index: int) -> int | None:
        """The token of the corrupted prompt at the place of a token of the clean one; None where it has no such place.

        Named positions are where they are named. Others are counted from the start in the part that both prompts begin
        with, and from the end after it.
        """
        if not self.has_corrupted:
            return None
        if self.corrupted_positions is None:
            return index
        for name, at in self.positions.items():
            if at == index:
                return self.corrupted_positions.get(name)
        return aligned(self.clean_tokens, self.corrupted_tokens, index)

    @model_validator(mode="after")
    def _consistent(self) -> PromptPair:
        where = f"prompt {self.id}"
        unequal = self.has_corrupted and len(self.clean_tokens) != len(self.corrupted_tokens)
        if (unequal and self.corrupted_positions is None) or not self.clean_tokens:
            raise MechstudyError(
                f"clean has {len(self.clean_tokens)} tokens and corrupted {len(self.corrupted_tokens)}",
                where=where,
                fix="both must have the same number of tokens, at least one",
            )
        if (several := self.answer_sets) is not None:
            listed = (several.right[:1], several.wrong[:1], several.right_tokens[:1], several.wrong_tokens[:1])
            alone = (self.answer, self.wrong_answer, self.answer_tokens, self.wrong_tokens)
            counts = (len(several.right), len(several.wrong))
            tokenised = (len(several.right_tokens), len(several.wrong_tokens))
            if listed != tuple((value,) for value in alone) or counts != tokenised:
                raise MechstudyError(
                    "answer_sets does not begin with the pair's own answers, or lacks tokens", where=where
                )
            if self.whole_answers:
                raise MechstudyError("whole answers are compared one with one", where=where)
        n = min(map(len, (self.answer_tokens, self.wrong_tokens))) if self.whole_answers else 1
        right, wrong = ({t[:n] for t in side if t} for side in (self.all_answer_tokens, self.all_wrong_tokens))
        if not self.answer_tokens or not self.wrong_tokens or right & wrong:
            raise MechstudyError(
                f"answers {_quoted(self.all_answers)} and {_quoted(self.all_wrong_answers)} do not differ in their"
                f" first {'token' if n == 1 else f'{n} tokens'}",
                where=where,
                fix="choose answers that the model can tell apart at its next token",
            )
        for name, index in self.positions.items():
            if not 0 <= index < len(self.clean_tokens):
                raise MechstudyError(
                    f"position {name}={index} is outside the prompt's {len(self.clean_tokens)} tokens",
                    where=where,
                )
        for name, index in (self.corrupted_positions or {}).items():
            if not 0 <= index < len(self.corrupted_tokens):
                raise MechstudyError(
                    f"position {name}={index} is outside the corrupted prompt's {len(self.corrupted_tokens)} tokens",
                    where=where,
                )
        return self


def _quoted(texts: Sequence[str]) -> str:
    return " | ".join(map(repr, texts))


def n_shared(one: Sequence[object], other: Sequence[object]) -> int:
    """Number of items with which both sequences begin."""
    return [*(a == b for a, b in zip(one, other, strict=False)), False].index(False)


def aligned(clean: Sequence[int], corrupted: Sequence[int], index: int) -> int | None:
    """The index in ``corrupted`` of a token of ``clean``.

    The same in the part that both begin with, else as far from the end; None where that falls into the common part.
    """
    shared = n_shared(clean, corrupted)
    if index < shared:
        return index
    there = index - len(clean) + len(corrupted)
    return there if there >= shared else None


def to_jsonl(pairs: Iterable[PromptPair]) -> str:
    """The text of a prompts file: one canonical JSON object per line."""
    return "".join(json.dumps(pair.canonical(), ensure_ascii=False) + "\n" for pair in pairs)


def from_jsonl(path: Path) -> list[PromptPair]:
    """Reads a file of prompt pairs written by `to_jsonl`, such as an artifact's ``train.jsonl``.

    Raises:
        MechstudyError: a line that is not a prompt pair, with its number.
    """
    pairs = []
    # not splitlines(): a prompt may contain U+2028, which JSON does not escape
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line:
            try:
                pairs.append(PromptPair.model_validate_json(line))
            except ValueError as error:
                raise MechstudyError(f"not a prompt pair: {error}", where=f"{path}:{number}") from error
    return pairs
