"""Corrupted prompts taken from other lines of the same file."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping

from mechstudy.behaviours.readers import Broken, Row
from mechstudy.behaviours.schema import PromptPair
from mechstudy.behaviours.splits import group_of, split_of, stated_splits
from mechstudy.behaviours.tokenise import Tokens

TRIES = 50


class Donors:
    """The lines from which another one may take its corrupted prompt.

    They are of its split and its template, and have another answer and, unless prompts are aligned, as many tokens.

    Args:
        rows: the checked rows, by line.
        seed: orders the donors of each line.
        align: whether prompts of different lengths are accepted.
    """

    def __init__(self, rows: Mapping[int, Row], tokens: Tokens, seed: int, *, align: bool) -> None:
        self._rows, self._tokens, self._seed, self._align = rows, tokens, seed, align
        self._stated = stated_splits(rows, {})
        self._alike: dict[tuple[str, str, int], list[int]] = defaultdict(list)
        for number, row in rows.items():
            self._alike[self._kind(row)].append(number)

    def first(self, number: int, pair: Callable[[Row, int], PromptPair]) -> PromptPair:
        """The pair of a line with the first donor that suits it.

        The donor's answer is the wrong one, unless the line has one.

        Args:
            pair: makes the pair of a row.

        Raises:
            Broken: no other line suits it.
        """
        row = self._rows[number]
        others = [n for n in self._alike[self._kind(row)] if self._rows[n]["clean"] != row["clean"]]
        last: Broken | None = None
        for other in sorted(others, key=lambda n: self._rank(row["clean"], n))[:TRIES]:
            donor = self._rows[other]
            try:
                return pair({"wrong_answer": donor["answer"]} | row | {"corrupted": donor["clean"]}, number)
            except Broken as error:
                last = error
        raise Broken(
            f"none of {len(others)} lines like it can be its corrupted prompt" + (f": {last.what}" if last else ""),
            "more lines of its template, split and length, or align: ends",
            "no other line for the corrupted prompt",
        )

    def _kind(self, row: Row) -> tuple[str, str, int]:
        split = split_of(group_of(row), self._stated)
        return split, row.get("template", "user"), 0 if self._align else len(self._tokens(row["clean"]))

    def _rank(self, clean: str, other: int) -> bytes:
        return hashlib.sha256(f"{self._seed}\n{clean}\n{self._rows[other]['clean']}".encode()).digest()
