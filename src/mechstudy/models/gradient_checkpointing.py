"""Gradient checkpointing: a block's tensors are computed again in the backward pass instead of being kept.

The hooks of a forward pass have been removed by the time of the backward pass, so each block's edits are installed
again around its recomputation. The arithmetic is the same, so gradients are the same to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from torch.utils.checkpoint import checkpoint

from mechstudy.models.architectures import Block
from mechstudy.models.hooks import replace_forward

Hooks = Callable[[int], AbstractContextManager[Any]]


def checkpoint_blocks(stack: ExitStack, blocks: Sequence[Block], first: int, hooks: Hooks) -> None:
    """Checkpoints the blocks from ``first`` on, until the stack is closed.

    Args:
        stack: restores the blocks when it is closed.
        blocks: all blocks of the model.
        first: the first layer to checkpoint.
        hooks: for a layer, a context that installs the layer's edits while its block is computed again.
    """
    for layer, block in enumerate(blocks):
        if layer >= first:
            forward = functools.partial(_checkpointed, block.module.forward, functools.partial(hooks, layer))
            replace_forward(stack, block.module, forward)


def _checkpointed(
    forward: Callable[..., Any], hooks: Callable[[], AbstractContextManager[Any]], *args: Any, **kwargs: Any
) -> Any:
    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), hooks()

    return checkpoint(
        forward, *args, use_reentrant=False, context_fn=contexts, preserve_rng_state=False, **kwargs
    )  # fmt: skip  # the model is in eval mode: no random numbers are drawn
