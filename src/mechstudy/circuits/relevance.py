"""The rules of relevance patching: a live run whose gradient is that of the linear model of the prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from mechstudy.core.errors import MechstudyError
from mechstudy.models.attention import frozen_patterns, recorded_patterns
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.linear_mlp import activation_function, activation_ratio


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
            if block.mlp_down is None:
                raise MechstudyError(
                    f"relp needs the activation function of each MLP, and {model.name} has a mixture of experts",
                    fix='method="eap_ig_inputs"',
                )
            stack.callback(activation_function(block).register_forward_hook(_constant_ratio).remove)
            if model.arch.gated:
                stack.callback(block.mlp_down.register_forward_pre_hook(_half).remove)
        for norm in {id(norm): norm for norm in norms if norm is not None}.values():
            stack.callback(norm.register_forward_hook(_constant_scale(model)).remove)
        yield


def _constant_ratio(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    z = args[0].detach()
    return out.detach() + activation_ratio(module.forward, z) * (args[0] - z)


def _half(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return (0.5 * args[0] + 0.5 * args[0].detach(), *args[1:])


def _constant_scale(model: LanguageModel) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = args[0].detach()
        frozen = model.linear_norm(module, x)
        return out.detach() + frozen.forward(args[0]) - frozen.forward(x)

    return hook
