"""Prompt pairs as tokens, and the tokens that words end on, for any tokenizer, using its ``encode`` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mechstudy.behaviours.schema import Encode, n_shared
from mechstudy.core.errors import MechstudyError
from mechstudy.models.context import ContextLength
from mechstudy.models.unknown_token import MOST, UnknownToken

UNKNOWN = "text that the tokenizer does not know"
UNEQUAL = "clean and corrupted of unequal token length"
TOO_LONG = "longer than the model's context"


def only_token(ids: Sequence[int], strings: Sequence[str], called: str, why: str, instead: str = "") -> int:
    """The one token of an answer.

    Args:
        ids: its tokens, at least one.
        strings: each as text.
        called: it is called in the error, as in "answer ' a b' is 2 tokens".
        why: more cannot be: "and" is put before it.
        instead: what else could be done.

    Raises:
        MechstudyError: there are more.
    """
    if len(ids) > 1:
        raise MechstudyError(
            f"{called} is {len(ids)} tokens, and {why}",
            facts={"tokens": " | ".join(map(repr, strings))},
            fix=f"its first token: {strings[0]!r}{instead}",
        )
    return ids[0]


class Unsuitable(ValueError):
    """These prompts cannot form a contrastive pair with this tokenizer.

    Attributes:
        kind: short name of the defect, the same for all prompts that have it.
        what: the defect with this prompt's details.
        fix: what a user can do about it.
    """

    def __init__(self, kind: str, what: str, fix: str) -> None:
        super().__init__(what)
        self.kind = kind
        self.what = what
        self.fix = fix


@dataclass(frozen=True)
class PairTokens:
    """Token ids of a pair: prompts, and answers as they follow the prompts; no corrupted ones where there is none."""

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    wrongs: tuple[tuple[int, ...], ...]

    @property
    def answer(self) -> tuple[int, ...]:
        """The first right answer."""
        return self.answers[0]

    @property
    def wrong(self) -> tuple[int, ...]:
        """The first wrong answer."""
        return self.wrongs[0]


class Tokens:
    """``encode`` with a cache, as the same few prompts are encoded many times; and the tokenizer's unknown token."""

    def __init__(self, encode: Encode, unknown: UnknownToken | None = None) -> None:
        self._encode = encode
        self.unknown = unknown
        self._cache: dict[str, tuple[int, ...]] = {}

    def __call__(self, text: str) -> tuple[int, ...]:
        """Token ids of a text."""
        if text not in self._cache:
            self._cache[text] = tuple(self._encode(text))
        return self._cache[text]

    def own(self, text: str) -> tuple[int, ...]:
        """The tokens of a text without those that the encoding puts before every text; all where they merge."""
        opening, ids = self(""), self(text)
        return ids[len(opening) :] if ids[: len(opening)] == opening else ids


def require_known(tokens: Tokens, name: str, text: str) -> None:
    """Checks that at most half of a prompt's own tokens are the unknown one.

    Raises:
        Unsuitable: more are: the model would read one token in place of most of the text.
    """
    if (unknown := tokens.unknown) is None:
        return
    own = tokens.own(text)
    if (n := unknown.among(own)) > MOST * len(own):
        raise Unsuitable(
            UNKNOWN, f"{name}: {n} of {len(own)} tokens are {unknown.text!r}, which stands for what is not known: "
            f"{shortened(text)!r}", unknown.fix,
        )  # fmt: skip


def shortened(text: str, longest: int = 40) -> str:
    """The beginning of a text, for an error."""
    return text if len(text) <= longest else text[: longest - 3] + "..."


def require_open_end(tokens: Tokens) -> None:
    """Checks that ``encode`` adds no tokens after the text, so that an answer can follow a prompt.

    Raises:
        MechstudyError: it adds some, such as an end-of-sequence token.
    """
    one, other = tokens("a"), tokens("b")
    if one != other and one[-1] == other[-1]:
        raise MechstudyError(
            "the model's encoding adds tokens after the prompt, so no answer can follow it",
            facts={"added": "most likely an end-of-sequence token of the tokenizer's settings"},
            fix="a tokenizer that adds nothing at the end",
        )


def require_positions(context: ContextLength | None, n_tokens: int) -> None:
    """Checks that a text fits into a model with a learned vector for each position.

    Raises:
        Unsuitable: it does not.
    """
    if context is not None and context.learned and n_tokens > context.n:
        raise Unsuitable(TOO_LONG, context.exceeded(n_tokens), f"at most {context.n} tokens with the answer")


def token_at(tokens: Tokens, text: str, end: int) -> int:
    """Index of the token that holds the character before ``end``, which must not be white space.

    A word of several tokens gives its last token; part of a token gives that token. A cut of the text is a token
    boundary if the text before it encodes to a prefix of the whole text's tokens; the first boundary from ``end`` on
    closes the token.
    """
    whole = tokens(text)
    for cut in range(end, len(text)):
        head = tokens(text[:cut])
        if head and head == whole[: len(head)]:
            return len(head) - 1
    return len(whole) - 1


def continuation(tokens: Tokens, prompt: str, answer: str) -> tuple[int, ...]:
    """The answer's tokens after the prompt.

    Raises:
        Unsuitable: the prompt's own tokens change when the answer is appended, or the answer has no token or an
            unknown one.
    """
    before, both = tokens(prompt), tokens(prompt + answer)
    if both[: len(before)] != before:
        raise Unsuitable(
            "answer merges with the prompt",
            f"answer {answer!r} merges with the end of the prompt {prompt[-12:]!r} into other tokens",
            "end the prompt without a space and begin the answer with one",
        )
    if len(both) == len(before):
        raise Unsuitable("answer without a token", f"answer {answer!r} has no token", "give an answer")
    ids, unknown = both[len(before) :], tokens.unknown
    if unknown is not None and unknown.among(ids) and unknown.text not in answer:
        raise Unsuitable(
            UNKNOWN,
            f"answer {answer!r} holds {unknown.text!r}, the token of all texts that the tokenizer does not know",
            "an answer of words that it knows",
        )
    return ids


def pair_tokens(
    tokens: Tokens,
    clean: str,
    corrupted: str | None,
    answer: str | Sequence[str],
    wrong: str | Sequence[str],
    *,
    equal: bool = True,
    whole: bool = False,
) -> PairTokens:
    """Token ids of a pair, and of the answers in context.

    Args:
        tokens: the encoder.
        clean: the clean prompt.
        corrupted: the corrupted prompt, if there is one.
        answer: the right answer to the clean prompt, or several.
        wrong: the right answer to the corrupted one, or several.
        equal: whether the two prompts must have the same number of tokens.
        whole: whether all tokens of the answers are compared, so that they may begin alike.

    Raises:
        Unsuitable: prompts that are mostly unknown tokens, prompts of unequal length, a right and a wrong answer that
            begin with the same token, or answers that merge with the prompt or are tokenised differently after the
            clean and the corrupted prompt.
    """
    require_known(tokens, "clean", clean)
    if corrupted is not None:
        require_known(tokens, "corrupted", corrupted)
    clean_ids, corrupted_ids = tokens(clean), () if corrupted is None else tokens(corrupted)
    if equal and corrupted is not None and len(clean_ids) != len(corrupted_ids):
        raise Unsuitable(
            UNEQUAL,
            f"clean has {len(clean_ids)} tokens, corrupted {len(corrupted_ids)}",
            "words with the same number of tokens, so that positions match; or align: ends in the study",
        )
    if not clean_ids or (corrupted is not None and not corrupted_ids):
        raise Unsuitable("prompt without a token", "the prompts have no tokens", "give a prompt")
    if clean_ids == corrupted_ids:
        raise Unsuitable(
            "clean and corrupted are the same", "clean and corrupted are the same tokens", "change one of them"
        )

    def following(text: str) -> tuple[int, ...]:
        after_clean = continuation(tokens, clean, text)
        if corrupted is not None and continuation(tokens, corrupted, text) != after_clean:
            raise Unsuitable(
                "answer tokenised differently after clean and corrupted",
                f"answer {text!r} has different tokens after the clean and the corrupted prompt",
                "let both prompts end with the same characters",
            )
        return after_clean

    right, others = ({text: following(text) for text in texts_of(side)} for side in (answer, wrong))
    for text, ids in right.items():
        for other, other_ids in others.items():
            if whole and ids[: len(other_ids)] == other_ids[: len(ids)]:
                raise Unsuitable(
                    "one answer begins with the other",
                    f"answers {text!r} and {other!r}: the tokens of one begin with those of the other",
                    "choose answers that part at some token",
                )
            if not whole and ids[0] == other_ids[0]:
                raise Unsuitable(
                    "answers begin with the same token",
                    f"answers {text!r} and {other!r} begin with the same token, so one logit cannot tell them apart",
                    "choose answers with different first tokens (and mind the leading space)"
                    + (_shared(text, other) or ("" if len(ids) == len(other_ids) == 1 else "; or answer_tokens: all")),
                )
    return PairTokens(clean_ids, corrupted_ids, tuple(right.values()), tuple(others.values()))


def texts_of(answer: str | Sequence[str]) -> tuple[str, ...]:
    """One answer, or several without repetitions, as a tuple."""
    return (answer,) if isinstance(answer, str) else tuple(dict.fromkeys(answer))


def _shared(answer: str, wrong: str) -> str:
    """The hint that both prompts may end with what the answers share, such as the 4 of 43 and 44."""
    shared = answer[: n_shared(answer, wrong)]
    if not shared.strip() or shared in (answer, wrong):
        return ""
    return f", or end both prompts with the part that the answers share, {shared!r}"


def same_positions(
    tokens: Tokens, clean: str, clean_ends: Mapping[str, int], corrupted: str, corrupted_ends: Mapping[str, int]
) -> dict[str, int]:
    """Token index of each named word, which has to be the same in both prompts, plus ``last``.

    Args:
        tokens: the encoder.
        clean: the clean prompt.
        clean_ends: the character at which each named word ends in it.
        corrupted: the corrupted prompt.
        corrupted_ends: likewise for the corrupted prompt.

    Raises:
        Unsuitable: a word is on different tokens in clean and corrupted, or two words are on the same token.
    """
    positions = {}
    for name, end in clean_ends.items():
        positions[name] = token_at(tokens, clean, end)
        other = token_at(tokens, corrupted, corrupted_ends[name])
        if positions[name] != other:
            raise Unsuitable(
                "positions differ between clean and corrupted",
                f"position {name} is token {positions[name]} in clean, {other} in corrupted",
                "choose words with the same number of tokens",
            )
    positions["last"] = len(tokens(clean)) - 1
    if len(set(positions.values())) < len(positions):
        raise Unsuitable(
            "two positions on one token",
            f"two of the positions {', '.join(positions)} are the same token",
            "name words further apart",
        )
    return positions
