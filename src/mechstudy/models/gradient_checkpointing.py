"""Gradient checkpointing: a block's tensors are not kept for the backward pass but computed again in it.

The hooks of a forward are gone by the time of the backward pass, so each block's edits are hooked again around its
recomputation; what they capture then goes nowhere. The arithmetic is the same, and so are the gradients' bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

from torch.utils.checkpoint import checkpoint

from mechstudy.machine.memory import available_memory_bytes
from mechstudy.models.hooks import replace_forward

if TYPE_CHECKING:
    from mechstudy.models.architectures import Block
    from mechstudy.models.language_model import LanguageModel

Hooks = Callable[[int], AbstractContextManager[Any]]
_SHARE = 0.5  # of the memory left, that a graph of tensors may take without checkpoints


def install(stack: ExitStack, blocks: Sequence[Block], first: int, hooks: Hooks) -> None:
    """Checkpoints the blocks from ``first`` on, until the stack is closed.

    Args:
        hooks: of a block's number, what installs its edits again while the block is computed again.
    """
    for layer, block in enumerate(blocks):
        if layer >= first:
            forward = functools.partial(_checkpointed, block.module.forward, functools.partial(hooks, layer))
            replace_forward(stack, block.module, forward)


def _checkpointed(forward: Callable[..., Any], hooks: Callable[[], AbstractContextManager[Any]], *args, **kwargs):
    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), hooks()

    return checkpoint(
        forward, *args, use_reentrant=False, context_fn=contexts, preserve_rng_state=False, **kwargs
    )  # fmt: skip  # nothing is drawn: the model is in eval mode


def graph_bytes(model: LanguageModel, n_rows: int, n_positions: int) -> int:
    """About the bytes that autograd keeps of a forward, from shapes: per block and token the inputs of its products,
    norms and activation, and the attention pattern where it is formed."""
    config = model.hf.config
    per_token = 6 * model.d_model + 3 * model.d_mlp
    if config._attn_implementation == "eager":
        per_token += 2 * config.num_attention_heads * n_positions
    return n_rows * n_positions * per_token * model.n_layers * model.dtype.itemsize


def wanted(setting: str, model: LanguageModel, n_rows: int, n_positions: int) -> bool:
    """Whether to checkpoint: ``on``, ``off``, or ``auto``, which is on where the graph takes over half of the memory
    that is left."""
    if setting != "auto":
        return setting == "on"
    return graph_bytes(model, n_rows, n_positions) > _SHARE * _left(model)


def _left(model: LanguageModel) -> int:
    if model.device.type != "cuda":
        return available_memory_bytes()
    import torch

    free, _ = torch.cuda.mem_get_info(model.device)
    return int(free) + torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
