"""Documents as token ids, packed into rows of equal length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mechstudy.corpus.config import SEPARATOR

_TOKENIZE_BATCH = 256


class Packer:
    """Cuts a stream of documents into rows of exactly ``context`` tokens.

    Every row begins with ``bos`` (empty if the tokenizer adds none), every document with ``separator``. A separator
    that is the BOS token is left out directly after it, so no row begins with two of them. Tokens that do not fill the
    last row are dropped.
    """

    def __init__(self, n_rows: int, context: int, bos: Sequence[int], separator: int | None) -> None:
        assert len(bos) < context, (bos, context)
        self._rows = np.empty((n_rows, context), dtype=np.int32)
        self._rows[:, : len(bos)] = bos
        self._bos, self._separator = list(bos), separator
        self._body = context - len(bos)
        self._stream: list[int] = []
        self.n_rows = 0

    @property
    def full(self) -> bool:
        """Whether all ``n_rows`` rows are finished."""
        return self.n_rows == len(self._rows)

    @property
    def rows(self) -> NDArray[np.int32]:
        """Finished rows, [n_rows, context]."""
        return self._rows[: self.n_rows]

    def add(self, tokens: Sequence[int]) -> None:
        """Adds one document. Tokens beyond the last row are dropped."""
        if self._separator is not None:
            self._stream.append(self._separator)
        self._stream += tokens
        at = 0
        while not self.full:
            begin = at + (at < len(self._stream) and self._stream[at : at + 1] == self._bos[-1:])
            if begin + self._body > len(self._stream):
                break
            at = begin + self._body
            self._rows[self.n_rows, len(self._bos) :] = self._stream[begin:at]
            self.n_rows += 1
        del self._stream[:at]


def tokenize(documents: Iterator[str], tokenizer: Any) -> Iterator[list[int]]:
    """Token ids of each document, without special tokens."""
    while batch := list(islice(documents, _TOKENIZE_BATCH)):
        yield from tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids


def bos_tokens(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer itself puts before a text; empty if it adds none."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a").input_ids
    start = next(i for i in range(len(full)) if full[i : i + len(plain)] == plain)
    return list(full[:start])


def separator_token(tokenizer: Any) -> int | None:
    """The token between documents: ``<|endoftext|>`` if the tokenizer has it, else BOS, else EOS, else None."""
    vocabulary = tokenizer.get_vocab()
    special = (vocabulary.get(SEPARATOR), tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next((int(token) for token in special if token is not None), None)
