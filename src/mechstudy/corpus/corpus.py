"""Token rows for dictionary training, cut from documents or sampled from the model itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechstudy.activations.config import CorpusConfig
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.corpus.documents import SEPARATOR, read_documents

if TYPE_CHECKING:
    from mechstudy.models.language_model import LanguageModel

TOKENS_FILE, CORPUS_FILE = "tokens.safetensors", "corpus.json"
_TOKENIZE_BATCH = 256


@dataclass(frozen=True)
class Corpus:
    """Rows of equal length, int32 [n_documents, context]: those for training first, then those held out."""

    tokens: Tensor
    n_held_out: int
    source: str

    @property
    def n_train(self) -> int:
        return len(self.tokens) - self.n_held_out

    @property
    def train(self) -> Tensor:
        """Rows for training, [n_train, context]."""
        return self.tokens[: self.n_train]

    @property
    def held_out(self) -> Tensor:
        """Rows from source documents that no training row comes from, [n_held_out, context]."""
        return self.tokens[self.n_train :]

    def summary(self) -> dict[str, Any]:
        n_documents, context = self.tokens.shape
        return {
            "source": self.source,
            "n_documents": n_documents,
            "context": context,
            "n_tokens": n_documents * context,
            "n_train_documents": self.n_train,
            "n_held_out_documents": self.n_held_out,
            "dtype": "int32",
        }

    def save(self, folder: Path) -> None:
        """Write ``tokens.safetensors`` and ``corpus.json``."""
        from safetensors.torch import save_file

        save_file({"tokens": self.tokens.contiguous()}, folder / TOKENS_FILE)
        (folder / CORPUS_FILE).write_text(json.dumps(self.summary(), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        """Raises MechstudyError where the folder holds no corpus or a damaged one."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            summary = json.loads((folder / CORPUS_FILE).read_text())
            tokens = load_file(folder / TOKENS_FILE)["tokens"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise MechstudyError(
                "the corpus cannot be read", where=str(folder), facts={"reason": str(error)}
            ) from error
        return cls(tokens, int(summary["n_held_out_documents"]), str(summary["source"]))


def build_corpus(
    config: CorpusConfig,
    tokenizer: Any,
    *,
    model: LanguageModel | None = None,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Rows of exactly ``config.context`` tokens, as many as the study asks for.

    Documents come in a seeded order; the first ones are held out, so that asking for more training tokens
    leaves them as they are. ``sampled`` needs the model, and keeps its finished batches in ``scratch``.

    Raises:
        MechstudyError: an unreadable source, or one with too few tokens (it says how many there are).
    """
    progress = progress or NullProgress()
    source = config.parsed()
    if source.kind == "sampled":
        from mechstudy.corpus.sampling import sample_rows

        assert model is not None, "sampling needs the model"
        rows = sample_rows(
            model,
            config.n_rows,
            config.context,
            temperature=config.temperature,
            seed=config.seed,
            batch=config.sample_batch,
            folder=scratch,
            progress=progress,
        )
        tokens = torch.cat([rows[config.held_out_rows :], rows[: config.held_out_rows]])
        return Corpus(tokens, config.held_out_rows, config.source)
    documents = tokenize(read_documents(source, config.text_field, config.seed), tokenizer)
    with progress.bar("tokens", config.n_rows * config.context, "tokens") as bar:
        try:
            parts = []
            for n_rows in (config.held_out_rows, config.train_rows):
                packer = Packer(n_rows, config.context, bos_tokens(tokenizer), separator_token(tokenizer))
                before = 0
                while not packer.full:
                    packer.add(next(documents))
                    bar.advance((packer.n_rows - before) * config.context)
                    before = packer.n_rows
                parts.append(packer.rows)
        except StopIteration:
            found = (packer.n_rows + sum(map(len, parts))) * config.context
            raise _too_few(config, found) from None
    return Corpus(torch.from_numpy(np.concatenate(parts[::-1])), config.held_out_rows, config.source)


def _too_few(config: CorpusConfig, found: int) -> MechstudyError:
    if not found:
        return MechstudyError(
            f"the text is shorter than one row of {config.context} tokens", where=f"corpus: {config.source}"
        )
    usable = found - config.held_out_rows * config.context
    return MechstudyError(
        f"not enough text: {config.tokens:,} tokens and {config.held_out_tokens:,} held out are asked for",
        where=f"corpus: {config.source}",
        facts={"there are": f"{found:,} tokens in whole rows of {config.context}"},
        fix=f"tokens: {usable}" if usable > 0 else "use a larger source, or fewer held_out_tokens",
    )


class Packer:
    """Cuts a stream of documents into rows of exactly ``context`` tokens.

    Every row begins with ``bos`` (empty where the tokenizer adds none), every document with ``separator``. A
    separator that is the BOS token is left out right after it: no row has a double BOS. What does not fill
    the last row is dropped.
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
        return self.n_rows == len(self._rows)

    @property
    def rows(self) -> NDArray[np.int32]:
        """Finished rows, [n_rows, context]."""
        return self._rows[: self.n_rows]

    def add(self, tokens: Sequence[int]) -> None:
        """Take in one document; what comes after the last row is full is dropped."""
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
    """Token ids of each document, without special tokens around it."""
    while batch := list(islice(documents, _TOKENIZE_BATCH)):
        yield from tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids


def bos_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text by itself; empty where it adds nothing."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a").input_ids
    start = next(i for i in range(len(full)) if full[i : i + len(plain)] == plain)
    return list(full[:start])


def separator_token(tokenizer: Any) -> int | None:
    """What stands between documents: ``<|endoftext|>`` if it is a token, else BOS, else EOS, else None."""
    vocabulary = tokenizer.get_vocab()
    if SEPARATOR in vocabulary:
        return vocabulary[SEPARATOR]
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
