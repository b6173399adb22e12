"""The exception for user errors, and the search for the nearest valid name."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import partial

_LABEL_WIDTH = len("model:")  # so that "fix:" is in one column in most messages


class MechstudyError(ValueError):
    """A user error: what is wrong, where, what exists, and what to do.

    The command line prints ``str(error)`` without a traceback and exits with 2::

        study.yaml:14: capture.layers: layer 31 does not exist
          model: SmolLM2-135M-Instruct has layers 0-29
          fix:   layers: 10-29

    It is a ``ValueError`` so that pydantic takes one raised in a validator as that field's error.
    In a validator, ``where`` names a field of the model being checked (``where="layers"``) and is
    replaced by the file and line where that field stands.
    """

    def __init__(
        self, what: str, *, where: str | None = None, facts: Mapping[str, str] | None = None, fix: str | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.facts = dict(facts or {})
        self.fix = fix

    def __str__(self) -> str:
        first = f"{self.where}: {self.what}" if self.where else self.what
        rows = [*self.facts.items(), *([("fix", self.fix)] if self.fix else [])]
        width = max([_LABEL_WIDTH, *(len(label) + 1 for label, _ in rows)])
        hanging = "\n" + " " * (2 + width + 1)
        lines = [f"  {label + ':':<{width}} {str(text).replace(chr(10), hanging)}" for label, text in rows]
        return "\n".join([first, *lines])

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), where=self.where, facts=self.facts, fix=self.fix), (self.what,)


def first_sentence(error: BaseException, longest: int = 200) -> str:
    """The first sentence of another library's error: whole, or cut between words with an ellipsis."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    sentence = re.split(r"(?<=[.!?]) (?=[A-Z`'\"(])", line)[0]
    if " " not in sentence:  # a KeyError's key alone
        sentence = f"{type(error).__name__}: {sentence}" if sentence != type(error).__name__ else sentence
    return textwrap.shorten(sentence, longest, placeholder=" ...")


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name closest to a misspelt one, or None when nothing is close. Case is ignored."""
    by_lower = {candidate.lower(): candidate for candidate in valid}
    close = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None
