"""Memory that autograd keeps of a forward pass, and whether gradient checkpointing is needed to save it."""

from __future__ import annotations

import torch

from mechstudy.machine.memory import available_memory_bytes
from mechstudy.models.language_model import LanguageModel

_SHARE = 0.5  # of the memory available, that a graph may take without checkpointing


def graph_bytes(model: LanguageModel, n_rows: int, n_positions: int) -> int:
    """Approximate bytes that autograd keeps of a forward pass, from shapes.

    Counted per block and token: the inputs of products, norms and the activation function, and attention patterns where
    they are formed.
    """
    config = model.hf.config
    per_token = 6 * model.d_model + 3 * model.d_mlp
    if config._attn_implementation == "eager":
        per_token += 2 * config.num_attention_heads * n_positions
    return n_rows * n_positions * per_token * model.n_layers * model.dtype.itemsize


def should_checkpoint(setting: str, model: LanguageModel, n_rows: int, n_positions: int) -> bool:
    """Whether to use gradient checkpointing for a forward pass.

    Args:
        setting: ``on``, ``off``, or ``auto``: if the graph would take over half of the memory available.
        model: the model.
        n_rows: rows of the batch.
        n_positions: tokens of each row.
    """
    if setting != "auto":
        return setting == "on"
    return graph_bytes(model, n_rows, n_positions) > _SHARE * _available_bytes(model)


def _available_bytes(model: LanguageModel) -> int:
    if model.device.type != "cuda":
        return available_memory_bytes()
    free, _ = torch.cuda.mem_get_info(model.device)
    return int(free) + torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
