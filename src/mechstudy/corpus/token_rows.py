"""Token rows for dictionary training, cut from documents or sampled from the model itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.corpus.config import CorpusConfig
from mechstudy.corpus.documents import read_documents
from mechstudy.corpus.packing import Packer, bos_tokens, separator_token, tokenize
from mechstudy.corpus.sampling import sample_rows
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.unknown_token import MOST, UnknownToken, unknown_token

TOKENS_FILE, CORPUS_FILE = "tokens.safetensors", "corpus.json"


@dataclass(frozen=True)
class Corpus:
    """Rows of equal length: those for training first, then those held out; ``n_unknown`` counts unknown tokens."""

    tokens: Int32[Tensor, "rows context"]
    n_held_out: int
    source: str
    n_unknown: int = 0

    @property
    def n_train(self) -> int:
        """Rows for training."""
        return len(self.tokens) - self.n_held_out

    @property
    def train(self) -> Int32[Tensor, "rows context"]:
        """The rows for training."""
        return self.tokens[: self.n_train]

    @property
    def held_out(self) -> Int32[Tensor, "rows context"]:
        """The rows held out, from source documents that no training row comes from."""
        return self.tokens[self.n_train :]

    def summary(self) -> dict[str, Any]:
        """The content of ``corpus.json``."""
        n_documents, context = self.tokens.shape
        return {
            "source": self.source,
            "n_documents": n_documents,
            "context": context,
            "n_tokens": n_documents * context,
            "n_train_documents": self.n_train,
            "n_held_out_documents": self.n_held_out,
            "dtype": "int32",
        } | ({"n_unknown_tokens": self.n_unknown} if self.n_unknown else {})

    def save(self, folder: Path) -> None:
        """Writes ``tokens.safetensors`` and ``corpus.json``."""
        save_file({"tokens": self.tokens.contiguous()}, folder / TOKENS_FILE)
        (folder / CORPUS_FILE).write_text(json.dumps(self.summary(), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        """Reads a saved corpus.

        Raises:
            MechstudyError: the folder holds no corpus, or a damaged one.
        """
        try:
            summary = json.loads((folder / CORPUS_FILE).read_text())
            tokens = load_file(folder / TOKENS_FILE)["tokens"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise MechstudyError(
                "the corpus cannot be read", where=str(folder), facts={"reason": str(error)}
            ) from error
        n_unknown = int(summary.get("n_unknown_tokens", 0))
        return cls(tokens, int(summary["n_held_out_documents"]), str(summary["source"]), n_unknown)


def build_corpus(
    config: CorpusConfig,
    tokenizer: Any,
    *,
    name: str = "this model",
    model: LanguageModel | None = None,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Token rows of a corpus source, in a seeded order of its documents.

    The first documents are held out, so asking for more training tokens does not change which ones.

    Args:
        config: the source, and how many rows of how many tokens.
        tokenizer: the model's.
        name: the model's name, for errors.
        model: the model that ``self`` needs.
        scratch: where finished batches of ``self`` are kept.
        progress: reports tokens.

    Raises:
        MechstudyError: the source cannot be read, or has too few tokens; the message says how many. Or more than half
            of its tokens are the tokenizer's unknown one.
    """
    progress = progress or NullProgress()
    source = config.parsed()
    if source.kind == "sampled":
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
    unknown = unknown_token(tokenizer, name)
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
                _check_known(parts[-1], unknown, config)
        except StopIteration:
            available = (packer.n_rows + sum(map(len, parts))) * config.context
            raise _too_few(config, available) from None
    tokens = torch.from_numpy(np.concatenate(parts[::-1]))
    n_unknown = 0 if unknown is None else int((tokens == unknown.id).sum())
    if unknown is not None and unknown.id in (tokenizer.bos_token_id, separator_token(tokenizer)):
        n_unknown = 0  # it has another meaning too, and most of these are of that
    if n_unknown and unknown is not None:
        progress.log(
            f"{n_unknown:,} of {tokens.numel():,} tokens ({n_unknown / tokens.numel():.1%}) are {unknown.text!r}"
        )
    return Corpus(tokens, config.held_out_rows, config.source, n_unknown)


def _check_known(rows: NDArray[np.int32], unknown: UnknownToken | None, config: CorpusConfig) -> None:
    """Refuses rows of which more than half is the unknown token."""
    if unknown is None or not rows.size:
        return
    share = float((rows == unknown.id).mean())
    if share > MOST:
        raise MechstudyError(
            f"{unknown.tokenizer} knows little of the text: {share:.0%} of its tokens are {unknown.text!r}",
            where=f"corpus: {config.source}",
            facts={"limit": f"{MOST:.0%}: above it the model reads one token in place of most of the text"},
            fix=unknown.fix,
        )


def _too_few(config: CorpusConfig, available: int) -> MechstudyError:
    if not available:
        return MechstudyError(
            f"the text is shorter than one row of {config.context} tokens", where=f"corpus: {config.source}"
        )
    usable = available - config.held_out_rows * config.context
    return MechstudyError(
        f"not enough text: {config.tokens:,} tokens and {config.held_out_tokens:,} held out are asked for",
        where=f"corpus: {config.source}",
        facts={"there are": f"{available:,} tokens in whole rows of {config.context}"},
        fix=f"tokens: {usable}" if usable > 0 else "use a larger source, or fewer held_out_tokens",
    )
