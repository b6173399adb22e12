"""A deterministic tokenizer for tests: words with their leading space, long words in pieces of five letters."""

from __future__ import annotations

import re

BOS = 0


class FakeTokenizer:
    """`encode` as a model's: BOS first if it is wanted. Ids are given out in the order texts are seen."""

    def __init__(self, *, bos: bool, longest: int = 8) -> None:
        self.bos = bos
        self.longest = longest
        self.vocabulary: dict[str, int] = {}

    def pieces(self, text: str) -> list[str]:
        found = []
        for word in re.findall(r" ?\w+| ?[^\s\w]+|\s+(?!\S)|\s", text):
            step = 5 if len(word) > self.longest else len(word)
            found += [word[start : start + step] for start in range(0, len(word), step)]
        return found

    def __call__(self, text: str) -> list[int]:
        ids = [self.vocabulary.setdefault(piece, len(self.vocabulary) + 1) for piece in self.pieces(text)]
        return [BOS, *ids] if self.bos else ids

    def text(self, token: int) -> str:
        return {index: piece for piece, index in self.vocabulary.items()}.get(token, "<bos>")
