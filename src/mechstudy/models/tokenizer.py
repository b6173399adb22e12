"""A model's tokenizer without its weights: transformers' own, or its bare file, which needs no torch."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mechstudy.core.errors import MechstudyError, first_sentence
from mechstudy.models.chat_clock import fixed_clock
from mechstudy.models.folder import model_name
from mechstudy.models.tokenizer_files import tokenizer_files
from mechstudy.models.unknown_token import UnknownToken, unknown_token

FILE = "tokenizer.json"
_SURROGATE = re.compile("[\ud800-\udfff]")


def encode(tokenizer: Any, text: str, instruction: str | None, name: str, date: str | None = None) -> list[int]:
    """Token ids of ``text``, or of the beginning of a reply to ``instruction`` that ``text`` begins.

    Args:
        tokenizer: a tokenizer of transformers.
        text: the text to encode.
        instruction: the user's turn of the chat template; None encodes ``text`` alone.
        name: the model's name, for the error.
        date: ``YYYY-MM-DD``, for templates that write one; None is the clock's.

    Raises:
        MechstudyError: no text, or one that is not Unicode; an instruction for a tokenizer without a chat template.
    """
    for given in (text, instruction or ""):
        if not isinstance(given, str):
            raise MechstudyError(f"{reprlib.repr(given)} is no text", fix='a text such as "Paris is in"')
        if (at := half_pair(given)) is not None:
            raise MechstudyError(
                f"the text holds half a surrogate pair at character {at}, which is no character",
                facts={"text": reprlib.repr(given)},
                fix="write the character itself; or text.encode('utf-8', 'replace').decode()",
            )
    if instruction is None:
        return list(tokenizer(text).input_ids)
    if not getattr(tokenizer, "chat_template", None):
        raise MechstudyError(f"{name} has no chat template", fix="set model.chat: false")
    with fixed_clock(date):
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": instruction}], tokenize=False, add_generation_prompt=True
        )
    return list(tokenizer(rendered + text, add_special_tokens=False).input_ids)


def half_pair(text: str) -> int | None:
    """The first character of a text that is half a surrogate pair, which JSON can write; None where there is none."""
    found = _SURROGATE.search(text)
    return None if found is None else found.start()


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model's folder, as the model uses it.

    Raises:
        MechstudyError: its files cannot be loaded, or hold no vocabulary.
    """
    import transformers  # imports torch, which the bare tokenizer does without

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # transformers and tokenizers raise many kinds for broken files
        raise MechstudyError(
            "the tokenizer cannot be loaded",
            where=str(folder),
            facts={"files": " ".join(tokenizer_files(folder)), "reason": first_sentence(error)},
            fix="copy tokenizer.json and tokenizer_config.json from the base model",
        ) from error
    check_encodes(tokenizer, str(folder))
    return tokenizer


def check_encodes(tokenizer: Any, where: str) -> None:
    """Checks that letters have tokens, and not the unknown one only.

    Raises:
        MechstudyError: the tokenizer has no vocabulary, as transformers builds one where its files are missing.
    """
    if len({tuple(tokenizer(letter, add_special_tokens=False).input_ids) for letter in "abc"}) == 1:
        raise MechstudyError(
            "the tokenizer knows no letters: its vocabulary is missing",
            where=where,
            fix="copy tokenizer.json (or tokenizer.model) from the base model",
        )


def check_vocabulary(tokenizer: Any, n_rows: int, where: str) -> None:
    """Checks that every token of the vocabulary has a row in the model's embedding.

    Tokens that were added to the vocabulary may have none (Gemma 3's for images): `LanguageModel.encode` refuses those.

    Raises:
        MechstudyError: the tokenizer is another model's.
    """
    if tokenizer.vocab_size > n_rows:
        raise MechstudyError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, and the model's embedding {n_rows:,} rows",
            where=where,
            fix="the tokenizer that belongs to these weights, or resize_token_embeddings before training",
        )


@dataclass(frozen=True)
class BareTokenizer:
    """``tokenizer.json`` alone: its ``encode``, and its unknown token."""

    encode: Callable[[str], list[int]]
    unknown: UnknownToken | None


def bare_tokenizer(folder: Path) -> BareTokenizer | None:
    """The tokenizer of ``tokenizer.json`` alone; None if there is no such file or it cannot be read.

    Token ids nearly equal those of the model's tokenizer: settings outside the file (a BOS token, a chat template) are
    missing.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        bare = Tokenizer.from_file(str(file))
    except Exception:  # the library raises nothing narrower for a file of a later version
        return None
    return BareTokenizer(lambda text: list(bare.encode(text).ids), unknown_token(bare, model_name(folder)))
