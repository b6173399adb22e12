"""A model's tokenizer without its weights: as the model has it, or the bare file, which needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError

FILE = "tokenizer.json"


def encode(tokenizer: Any, text: str, instruction: str | None, name: str) -> list[int]:
    """Token ids of ``text``; of the beginning of a reply to ``instruction``, where there is one.

    Args:
        tokenizer: of transformers.
        name: of the model, for the error.

    Raises:
        MechstudyError: an instruction for a tokenizer without a chat template.
    """
    if instruction is None:
        return list(tokenizer(text).input_ids)
    if not getattr(tokenizer, "chat_template", None):
        raise MechstudyError(f"{name} has no chat template", fix="set model.chat: false")
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": instruction}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(rendered + text, add_special_tokens=False).input_ids)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model's folder, as the model itself is given it. Imports torch."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trust_remote_code
    )


def bare_encode(folder: Path) -> Callable[[str], list[int]] | None:
    """Token ids by ``tokenizer.json`` alone; None where there is none that can be read.

    Nearly what the model's tokenizer gives: settings beside the file (a BOS token, a chat template) are not in it.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        from tokenizers import Tokenizer

        bare = Tokenizer.from_file(str(file))
    except Exception:  # of a version that this library does not know: it raises nothing narrower
        return None
    return lambda text: list(bare.encode(text).ids)
