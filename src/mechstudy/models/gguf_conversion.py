"""GGUF files, dequantised into folders of safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from mechstudy.core.errors import MechstudyError


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Writes the model and tokenizer of a GGUF file into a folder, with float32 weights.

    Raises:
        MechstudyError: the file cannot be read.
    """
    log: Any = transformers.utils.logging
    log.disable_progress_bar()
    auto_model: Any = transformers.AutoModelForCausalLM
    try:
        model = auto_model.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # gguf and transformers raise many kinds for a broken file
        raise MechstudyError(
            f"the GGUF file cannot be read: {str(error).splitlines()[0] if str(error) else error!r}",
            where=str(gguf),
        ) from error
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain float32 from here on
    plain = auto_model.from_config(config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
