"""Rules of what a feature fires on: of the token, of those before it, or of both, induced from positives and negatives.

A rule is one or two conditions. A condition asks whether a token, or the one or two before it, is one of some words or
of a class (digits, capitals, an ending), or whether one of some words came shortly before.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from mechstudy.models.language_model import LanguageModel

NEAR = 16  # tokens before that "came before" means
MAX_WORDS = 6  # of a condition
GAIN = 0.005  # of balanced accuracy, that a further word must add
DOUBT = 1.0  # standard errors by which a word's gain is lowered
SECOND_GAIN = 0.03  # of balanced accuracy, that a second condition must add
_TRIED = 6  # conditions that are tried with a second
_ENDINGS = ("ing", "ed", "ly", "er", "est", "tion", "ment", "ness", "able", "al", "ive", "ous", "ity", "s")
_FIRST = "the start of the text"

Rows = Int[np.ndarray, " _"]
Hits = Bool[np.ndarray, " _"]


def normal(token: str) -> str:
    """A token without the space before it and without capitals; whitespace alone stays."""
    return token.strip().lower() or token


def _is_word(token: str) -> bool:
    return token.strip().isalpha()


def _is_punctuation(token: str) -> bool:
    word = token.strip()
    return bool(word) and all(unicodedata.category(c)[0] in "PS" for c in word)


def _ends(ending: str, token: str) -> bool:
    return _is_word(token) and len(token.strip()) > len(ending) + 1 and token.endswith(ending)


CLASSES: Mapping[str, Callable[[str], bool]] = {
    "digits": lambda t: bool(re.fullmatch(r"\s*\d+", t)),
    "punctuation": _is_punctuation,
    "line breaks": lambda t: "\n" in t,
    "opening quotes and brackets": lambda t: t.strip() in {'"', "“", "(", "[", "{", "«", "\u2018"},
    "capitalised words": lambda t: _is_word(t) and t.strip()[:1].isupper(),
    "words in capitals": lambda t: _is_word(t) and len(t.strip()) > 1 and t.strip().isupper(),
    "parts of words": lambda t: _is_word(t) and not t[:1].isspace(),
    "letters that are not ASCII": lambda t: any(ord(c) > 127 and c.isalpha() for c in t),
    **{f"words in -{ending}": partial(_ends, ending) for ending in _ENDINGS},
}


class Text:
    """Documents of equal length as words and classes of words, for rules to be asked of.

    A row is a token's place: document x length + position.
    """

    def __init__(self, token_rows_BT: Int[np.ndarray, "b t"], strings: Mapping[int, str]) -> None:
        """Takes documents as token ids, and the text of each id that occurs."""
        self.length = token_rows_BT.shape[1]
        ids, inverse = np.unique(token_rows_BT, return_inverse=True)
        self.tokens = [strings[int(i)] for i in ids]
        words, word_of = np.unique([normal(t) for t in self.tokens], return_inverse=True)
        self.words: list[str] = words.tolist()
        self._token_N = inverse.reshape(-1)
        self._word_N = word_of[self._token_N]

    @classmethod
    def of(cls, model: LanguageModel, token_rows_BT: Int[Tensor, "b t"]) -> Text:
        """Documents as a model's tokens."""
        rows_BT = token_rows_BT.numpy()
        ids = np.unique(rows_BT).tolist()
        return cls(rows_BT, dict(zip(ids, model.token_strings(ids), strict=True)))

    @cached_property
    def _classes(self) -> Mapping[str, Bool[np.ndarray, " v"]]:
        return {name: np.array([test(t) for t in self.tokens]) for name, test in CLASSES.items()}

    def words_at(self, rows: Rows, back: int) -> Int[np.ndarray, " _"]:
        """The word ``back`` tokens before each row; -1 where the document has not begun."""
        return np.where(rows % self.length >= back, self._word_N[np.maximum(rows - back, 0)], -1)

    def class_at(self, rows: Rows, back: int, name: str) -> Hits:
        """Whether the token ``back`` tokens before each row is of a class."""
        of_row = self._classes[name][self._token_N[np.maximum(rows - back, 0)]]
        hits: Hits = of_row & (rows % self.length >= back)
        return hits

    def words_before(self, rows: Rows) -> Int[np.ndarray, "_ near"]:
        """The words of the `NEAR` tokens before each row; -1 where the document has not begun."""
        back = np.arange(1, NEAR + 1)
        at = self._word_N[np.maximum(rows[:, None] - back, 0)]
        return np.where((rows % self.length)[:, None] >= back, at, -1)

    def same_token(self, rows: Rows, of: Rows) -> Hits:
        """Whether each row's token occurs among those of other rows."""
        hits: Hits = np.isin(self._token_N[rows], self._token_N[of])
        return hits


@dataclass(frozen=True)
class Words:
    """The token ``back`` before is one of some words."""

    back: int
    words: tuple[str, ...]

    def holds(self, text: Text, rows: Rows) -> Hits:
        """Of each row."""
        hits: Hits = np.isin(text.words_at(rows, self.back), [text.words.index(w) for w in self.words])
        return hits

    def __str__(self) -> str:
        return f"{_where(self.back)} {_listed(self.words)}"


@dataclass(frozen=True)
class OfClass:
    """The token ``back`` before is of a class of `CLASSES`."""

    back: int
    name: str

    def holds(self, text: Text, rows: Rows) -> Hits:
        """Of each row."""
        return text.class_at(rows, self.back, self.name)

    def __str__(self) -> str:
        return f"{_where(self.back)} {self.name}"


@dataclass(frozen=True)
class Before:
    """One of some words is among the `NEAR` tokens before."""

    words: tuple[str, ...]

    def holds(self, text: Text, rows: Rows) -> Hits:
        """Of each row."""
        return _any(np.isin(text.words_before(rows), [text.words.index(w) for w in self.words]))

    def __str__(self) -> str:
        return f"shortly after {_listed(self.words)}"


@dataclass(frozen=True)
class Start:
    """The token is one of the first of its document."""

    within: int

    def holds(self, text: Text, rows: Rows) -> Hits:
        """Of each row."""
        hits: Hits = np.less_equal(rows % text.length, self.within)
        return hits

    def __str__(self) -> str:
        return f"within {self.within} tokens of {_FIRST}"


Condition = Words | OfClass | Before | Start


@dataclass(frozen=True)
class Rule:
    """All of its conditions hold."""

    conditions: tuple[Condition, ...]

    def holds(self, text: Text, rows: Rows) -> Hits:
        """Of each row."""
        return ~_any(~np.stack([condition.holds(text, rows) for condition in self.conditions], 1))

    def __str__(self) -> str:
        return " ".join(str(condition) for condition in self.conditions)


def balanced_accuracy(positive: Hits, negative: Hits) -> float:
    """The mean of the shares judged rightly of positives and of negatives: the AUROC of a yes or no."""
    return float((positive.mean() + 1 - negative.mean()) / 2)


def induced(text: Text, positives: Rows, negatives: Rows) -> Rule | None:
    """The rule that separates positives from negatives best; None where nothing that recurs does.

    A word counts with what it adds to the balanced accuracy less `DOUBT` standard errors of that, and only if it is
    among the positives of two documents. Words at one place exclude each other, so that the best ones are those that
    add most. A second condition is taken where it adds at least `SECOND_GAIN`.

    Args:
        text: the documents.
        positives: rows of which the rule should hold.
        negatives: rows of which it should not.
    """
    rows, of = (positives, negatives), (len(positives), len(negatives))
    always: list[Condition] = [OfClass(back, name) for back in (0, 1) for name in CLASSES]
    always += [Start(within) for within in (2, 8)]
    fixed = [_Found.of(text, condition, rows) for condition in always]
    singles = fixed + [_Found.of(text, condition, rows) for condition in _word_conditions(text, *rows, of)]
    best = max(singles, key=_accuracy)
    pairs: list[_Found] = []
    positive_CR, negative_CR = np.stack([f.positive for f in fixed]), np.stack([f.negative for f in fixed])
    for first in sorted(singles, key=_accuracy)[-_TRIED:]:
        within = positives[first.positive], negatives[first.negative]
        seconds = [_Found.of(text, condition, rows) for condition in _word_conditions(text, *within, of)]
        separated_C = (positive_CR & first.positive).mean(1) - (negative_CR & first.negative).mean(1)
        for number in np.argsort(-separated_C, kind="stable")[:2]:  # the first may be about the same place
            seconds.append(fixed[number])
        pairs += [first.both(second) for second in seconds if _place(second) != _place(first)]
    pair = max(pairs, key=_accuracy, default=best)
    chosen = pair if pair.accuracy >= best.accuracy + SECOND_GAIN else best
    return chosen.rule if chosen.accuracy > 0.5 + GAIN else None


@dataclass(frozen=True)
class _Found:
    """A rule, and the positives and negatives of which it holds."""

    rule: Rule
    positive: Hits
    negative: Hits

    @classmethod
    def of(cls, text: Text, condition: Condition, rows: tuple[Rows, Rows]) -> _Found:
        return cls(Rule((condition,)), *(condition.holds(text, some) for some in rows))

    @cached_property
    def accuracy(self) -> float:
        return balanced_accuracy(self.positive, self.negative)

    def both(self, other: _Found) -> _Found:
        """Where both hold, what is about the token itself first."""
        ordered = sorted((*self.rule.conditions, *other.rule.conditions), key=_order)
        return _Found(Rule(tuple(ordered)), self.positive & other.positive, self.negative & other.negative)


def _accuracy(found: _Found) -> float:
    return found.accuracy


def _place(found: _Found) -> tuple[type, int | None]:
    """What a second condition is not to be about again."""
    [condition] = found.rule.conditions
    return type(condition), getattr(condition, "back", None)


def _word_conditions(text: Text, positives: Rows, negatives: Rows, of: tuple[int, int]) -> Iterator[Condition]:
    """One for each place, with the words that serve it best; ``of`` counts all positives and negatives."""
    if not len(positives):
        return
    for back in (0, 1, 2):
        gains = _gains(
            text, (positives, negatives), [text.words_at(rows, back)[:, None] for rows in (positives, negatives)], of
        )
        if chosen := [text.words[w] for w, gain in gains[:MAX_WORDS] if gain >= GAIN]:
            yield Words(back, tuple(chosen))
    left = [positives, negatives]
    before: list[str] = []
    while len(before) < MAX_WORDS // 2:
        near = [text.words_before(rows) for rows in left]
        gains = _gains(text, left, near, of)
        word, gain = gains[0] if gains else (-1, 0.0)
        if gain < 2 * GAIN:
            break
        before.append(text.words[word])
        left = [rows[~(words_RN == word).any(1)] for rows, words_RN in zip(left, near, strict=True)]
    if before:
        yield Before(tuple(before))


def _gains(
    text: Text, rows: Sequence[Rows], words: Sequence[Int[np.ndarray, "_ _"]], of: tuple[int, int]
) -> list[tuple[int, float]]:
    """What each word that recurs adds to the balanced accuracy, less `DOUBT` standard errors; the most first."""
    n_words = len(text.words)
    counts = []
    for words_RN in words:
        ordered = np.sort(words_RN, 1)
        new = ordered >= 0
        new[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
        counts.append(np.bincount(ordered[new], minlength=n_words))
    documents = np.unique((rows[0] // text.length)[:, None] * (n_words + 1) + words[0] + 1)
    recurs = np.bincount(documents % (n_words + 1), minlength=n_words + 1)[1:] > 1
    shares = [count / n for count, n in zip(counts, of, strict=True)]
    error = np.sqrt(counts[0] / of[0] ** 2 + counts[1] / of[1] ** 2)
    gain = (shares[0] - shares[1] - DOUBT * error) / 2
    adding = np.flatnonzero(recurs & (gain > 0))
    adding = adding[np.argsort(-gain[adding], kind="stable")]
    return list(zip(adding.tolist(), gain[adding].tolist(), strict=True))


def _any(hits_RN: Bool[np.ndarray, "_ _"]) -> Hits:
    """Whether any of a row is true."""
    hits: Hits = np.logical_or.reduce(hits_RN, axis=1)
    return hits


def _order(condition: Condition) -> tuple[int, int]:
    kinds = (Words, OfClass, Before, Start)
    return getattr(condition, "back", 9), kinds.index(type(condition))


def _where(back: int) -> str:
    return ("on", "after", "two after")[back]


def _listed(words: Sequence[str]) -> str:
    shown = [{"\n": "↵", "\t": "⇥", " ": "·"}.get(word, word.replace("\n", "↵")) for word in words]
    return ", ".join(f"«{word}»" for word in shown)
