"""GGUF files, dequantised into folders of safetensors."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf import GGUFReader
from numpy.typing import NDArray
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mechstudy.core.errors import MechstudyError


def convert_gguf(gguf: Path, folder: Path) -> str | None:
    """Writes the model and tokenizer of a GGUF file into a folder, with float32 weights.

    transformers drops the scaling of rotary positions that a file asks for, so it is put into the config here, and it
    fills tensors that the file lacks with random numbers, so those are refused.

    Returns:
        The name that the file gives its model, if it does.

    Raises:
        MechstudyError: the file cannot be read, lacks tensors, or scales its rotary positions in a way that is not
            known here.
    """
    log: Any = transformers.utils.logging
    log.disable_progress_bar()
    auto_model: Any = transformers.AutoModelForCausalLM
    reader = _reader(gguf)
    try:
        model, report = auto_model.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # gguf and transformers raise many kinds for a broken file
        raise MechstudyError(
            f"the GGUF file cannot be read: {str(error).splitlines()[0] if str(error) else error!r}",
            where=str(gguf),
            fix="a GGUF file of a supported family, or the model's safetensors: hf:<id> or path:<folder>",
        ) from error
    _refuse_missing(report["missing_keys"], reader, gguf)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain float32 from here on
    _restore_rope_scaling(config, reader, gguf)
    plain = auto_model.from_config(config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    name = _field(reader, "general.name")
    return None if name is None else str(name)


def _reader(gguf: Path) -> GGUFReader:
    """The file's fields and tensors.

    Raises:
        MechstudyError: it is no GGUF file, or ends before what its header lists.
    """
    with gguf.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        what = "is a pointer of Git LFS" if magic == b"vers" else f"is not a GGUF file: it begins with {magic!r}"
        raise MechstudyError(f"{gguf.name} {what}", where=str(gguf), fix="fetch or copy it again")
    try:
        return GGUFReader(gguf)
    except Exception as error:  # of NumPy's, where an array ends early
        raise MechstudyError(
            "the GGUF file is truncated or damaged",
            where=str(gguf),
            facts={"size": f"{gguf.stat().st_size:,} bytes", "reason": (str(error) or repr(error)).splitlines()[0]},
            fix="fetch or copy it again",
        ) from error


def _refuse_missing(missing: Collection[str], reader: GGUFReader, gguf: Path) -> None:
    if not missing:
        return
    experts = _field(reader, f"{_field(reader, 'general.architecture')}.expert_count")
    raise MechstudyError(
        f"the weights are incomplete: {len(missing)} tensors are missing",
        where=str(gguf),
        facts={"first": min(missing)}
        | ({"experts": f"{experts}, which are not read of this family"} if experts else {}),
        fix="fetch or copy the file again, or use the model's safetensors: hf:<id> or path:<folder>",
    )


def _restore_rope_scaling(config: Any, reader: GGUFReader, gguf: Path) -> None:
    architecture = _field(reader, "general.architecture")
    prefix = f"{architecture}.rope.scaling"
    kind, factor = _field(reader, f"{prefix}.type"), _field(reader, f"{prefix}.factor")
    before = _field(reader, f"{architecture}.rope.scale_linear")  # of files from before the type was written
    if kind is None and before is not None and float(before) != 1.0:
        kind, factor = "linear", before
    if kind is None and factor is not None and float(factor) not in (0.0, 1.0):
        kind = "linear"  # which llama.cpp takes a missing type for
    frequencies = {t.name: t for t in reader.tensors if t.name.startswith("rope_")}
    if kind in (None, "none") and not frequencies:
        return
    # Gemma 3 has rotary positions of two kinds: those of its windowed layers are never scaled.
    by_layer = config.rope_parameters.get("full_attention")
    if (by_layer or config.rope_parameters).get("rope_type", "default") != "default":
        return  # transformers has read it
    if kind == "linear" and factor is not None and not frequencies:
        scaled = (by_layer or config.rope_parameters) | {"rope_type": "linear", "factor": float(factor)}
        config.rope_parameters = config.rope_parameters | {"full_attention": scaled} if by_layer else scaled
        return
    if kind in (None, "none") and set(frequencies) == {"rope_freqs.weight"}:
        divisors = np.asarray(frequencies["rope_freqs.weight"].data, dtype=np.float64)
        if _set_llama3(config, divisors):
            return
    raise MechstudyError(
        "the file scales its rotary positions in a way that is not read here",
        where=str(gguf),
        facts={
            f"{prefix}.type": str(kind),
            f"{prefix}.factor": str(factor),
            "tensors": " ".join(frequencies) or "none",
        },
        fix="use the model's safetensors: hf:<id> or path:<folder>",
    )


def _set_llama3(config: Any, divisors: NDArray[np.float64]) -> bool:
    """Sets Llama 3's scaling if it divides the rotary frequencies as the file's tensor does."""
    before = config.rope_parameters
    plain = ROPE_INIT_FUNCTIONS["linear"]
    config.rope_parameters = before | {"rope_type": "linear", "factor": 1.0}
    unscaled = plain(config, torch.device("cpu"))[0].double().numpy()
    config.rope_parameters = before | {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0].double().numpy()
    if scaled.shape == divisors.shape and np.allclose(unscaled / divisors, scaled, rtol=1e-3):
        return True
    config.rope_parameters = before
    return False


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()
