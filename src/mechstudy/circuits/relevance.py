"""The rules of relevance patching: a live run whose gradient is that of the linear model of the prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mechstudy.core.errors import MechstudyError
from mechstudy.models.architectures import Block
from mechstudy.models.attention import frozen_patterns, recorded_patterns
from mechstudy.models.language_model import LanguageModel

_TINY = 1e-6  # inputs whose ratio is the derivative at 0


@contextmanager
def relevance_rules(model: LanguageModel, tokens_BT: Int[Tensor, "b t"]) -> Iterator[None]:
    """Inside the block, gradients of runs of these tokens follow the rules of RelP (2508.21258); values do not change.

    Attention patterns and norms' scales are constants, and so is the ratio phi(z) / z of an activation function. Of a
    gated MLP's product of two branches each branch gets half (the half rule), so that relevance is conserved.

    Raises:
        MechstudyError: an MLP is a mixture of experts.
    """
    with recorded_patterns(model.hf) as patterns:
        model.forward(tokens_BT, logits_at=None)
    with ExitStack() as stack:
        stack.enter_context(frozen_patterns(model.hf, dict(patterns)))
        norms = [model.final_norm]
        for block in model.blocks:
            norms += [block.norm_attn, block.norm_attn_post, block.norm_mlp, block.norm_mlp_post]
            stack.callback(_activation_function(model, block).register_forward_hook(_constant_ratio).remove)
            if model.arch.gated:
                stack.callback(block.mlp_down.register_forward_pre_hook(_half).remove)
        for norm in {id(norm): norm for norm in norms if norm is not None}.values():
            stack.callback(norm.register_forward_hook(_constant_scale(model)).remove)
        yield


def _activation_function(model: LanguageModel, block: Block) -> nn.Module:
    """The one part of an MLP without parameters, but for dropout."""
    parts = [m for m in block.mlp.children() if not any(True for _ in m.parameters()) and not isinstance(m, nn.Dropout)]
    if block.mlp_down is None or len(parts) != 1:
        raise MechstudyError(
            f"relp needs the activation function of each MLP, and {model.name} has a mixture of experts",
            fix='method="eap_ig_inputs"',
        )
    return parts[0]


def _constant_ratio(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    z = args[0].detach()
    step = torch.full_like(z[..., :1], _TINY)
    at_zero = (module.forward(step) - module.forward(-step)) / (2 * _TINY)
    ratio = torch.where(z.abs() < _TINY, at_zero, out.detach() / z)
    return out.detach() + ratio * (args[0] - z)


def _half(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return (0.5 * args[0] + 0.5 * args[0].detach(), *args[1:])


def _constant_scale(model: LanguageModel) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = args[0].detach()
        frozen = model.linear_norm(module, x)
        return out.detach() + frozen.forward(args[0]) - frozen.forward(x)

    return hook
