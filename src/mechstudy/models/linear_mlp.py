"""An MLP as the linear map that equals it at a prompt: the ratio of every activation to its input frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechstudy.models.architectures import Block

_TINY = 1e-12  # below this, an activation's ratio to its input is its slope at zero


@dataclass(frozen=True)
class LinearMlp:
    """The MLP of a block at one prompt, as an affine map of what it reads.

    Neuron j at position t holds ``up_scale[t, j] * (x @ up[j] + up_bias[j])`` and, in a gated MLP, as much again from
    ``gate``: of a product of two branches each gets half, the other branch held at its value (the half rule of RelP,
    arXiv 2508.21258, and of AttnLRP, 2402.05602). The sum is exact at the prompt. Down maps include what the block
    multiplies its MLP's output by (Granite); a norm after the MLP is not part of it.

    F counts neurons, D is the width that is read, E the width that is written.
    """

    up_FD: Float[Tensor, "f d"]
    up_bias_F: Float[Tensor, " f"] | None
    up_scale_TF: Float[Tensor, "t f"]
    gate_FD: Float[Tensor, "f d"] | None
    gate_bias_F: Float[Tensor, " f"] | None
    gate_scale_TF: Float[Tensor, "t f"] | None
    down_EF: Float[Tensor, "e f"]
    down_bias_E: Float[Tensor, " e"] | None

    def neurons(self, x_TD: Float[Tensor, "*b t d"]) -> Float[Tensor, "*b t f"]:
        """What the neurons hold, affine in what the MLP reads."""
        neurons = _affine(x_TD, self.up_FD, self.up_bias_F) * self.up_scale_TF
        if self.gate_FD is not None and self.gate_scale_TF is not None:
            neurons = neurons + _affine(x_TD, self.gate_FD, self.gate_bias_F) * self.gate_scale_TF
        return neurons

    def forward(self, x_TD: Float[Tensor, "*b t d"]) -> Float[Tensor, "*b t e"]:
        """What the MLP writes, affine in what it reads."""
        return _affine(self.neurons(x_TD), self.down_EF, self.down_bias_E)

    def backward(self, g_RTE: Float[Tensor, "r t e"]) -> Float[Tensor, "r t d"]:
        """Gradients with respect to what the MLP reads, from gradients with respect to what it writes."""
        g_RTF = g_RTE @ self.down_EF
        if self.gate_FD is None or self.gate_scale_TF is None:
            return (g_RTF * self.up_scale_TF) @ self.up_FD
        return (g_RTF * self.up_scale_TF) @ self.up_FD + (g_RTF * self.gate_scale_TF) @ self.gate_FD

    def readers(
        self, position_M: Int[Tensor, " m"], neuron_M: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, " m"]]:
        """What some neurons read at their positions: directions, and the constants that their biases add."""
        scale = self.up_scale_TF[position_M, neuron_M]
        directions, constants = scale[:, None] * self.up_FD[neuron_M], torch.zeros_like(scale)
        if self.up_bias_F is not None:
            constants = scale * self.up_bias_F[neuron_M]
        if self.gate_FD is not None and self.gate_scale_TF is not None:
            scale = self.gate_scale_TF[position_M, neuron_M]
            directions = directions + scale[:, None] * self.gate_FD[neuron_M]
            if self.gate_bias_F is not None:
                constants = constants + scale * self.gate_bias_F[neuron_M]
        return directions, constants

    def linear(self, x_TD: Float[Tensor, "*b t d"]) -> Float[Tensor, "*b t e"]:
        """`forward` without constants."""
        return replace(self, up_bias_F=None, gate_bias_F=None, down_bias_E=None).forward(x_TD)

    def at(self, where: Int[Tensor, " m"] | slice) -> LinearMlp:
        """It at some positions."""
        gate = None if self.gate_scale_TF is None else self.gate_scale_TF[where]
        return replace(self, up_scale_TF=self.up_scale_TF[where], gate_scale_TF=gate)


def linear_mlp(block: Block, mlp_in_TD: Float[Tensor, "t d"]) -> LinearMlp | None:
    """The block's MLP at what it reads; None for a mixture of experts."""
    if block.mlp_down is None:
        return None
    act = activation_function(block)
    (up_FD, up_bias_F), gate = _branches(block)
    up_TF = _affine(mlp_in_TD, up_FD, up_bias_F)
    if gate is None:
        return LinearMlp(up_FD, up_bias_F, activation_ratio(act, up_TF), None, None, None, *mlp_down(block))
    gate_TF = _affine(mlp_in_TD, *gate)
    return LinearMlp(
        up_FD, up_bias_F, act(gate_TF) / 2, *gate, activation_ratio(act, gate_TF) * up_TF / 2, *mlp_down(block)
    )  # fmt: skip


def tangent_mlp(block: Block, mlp_in_TD: Float[Tensor, "t d"]) -> LinearMlp | None:
    """The derivative of the block's MLP at what it reads, as a map without constants; None for a mixture of experts."""
    if block.mlp_down is None:
        return None
    act, down_EF = activation_function(block), mlp_down(block)[0]
    (up_FD, up_bias_F), gate = _branches(block)
    up_TF = _affine(mlp_in_TD, up_FD, up_bias_F)
    if gate is None:
        return LinearMlp(up_FD, None, _slope(act, up_TF), None, None, None, down_EF, None)
    gate_TF = _affine(mlp_in_TD, *gate)
    return LinearMlp(up_FD, None, act(gate_TF), gate[0], None, _slope(act, gate_TF) * up_TF, down_EF, None)


def mlp_down(block: Block) -> tuple[Float[Tensor, "e f"], Float[Tensor, " e"] | None]:
    """The down projection and its bias, with what the block multiplies its MLP's output by."""
    weight, bias = _weights(block.mlp_down)
    multiplier = block.residual_multiplier
    if multiplier == 1:
        return weight, bias
    return weight * multiplier, None if bias is None else bias * multiplier


_Linear = tuple[Tensor, Tensor | None]


def _branches(block: Block) -> tuple[_Linear, _Linear | None]:
    """The map into the MLP, and the gate's if it is gated."""
    arch, mlp = block.arch, block.mlp
    up, up_bias = _weights(getattr(mlp, arch.mlp_up))
    if not arch.gated:
        return (up, up_bias), None
    if arch.mlp_gate is not None:
        return (up, up_bias), _weights(getattr(mlp, arch.mlp_gate))
    gate, up = up.chunk(2)
    gate_bias, up_bias = (None, None) if up_bias is None else up_bias.chunk(2)
    return (up, up_bias), (gate, gate_bias)


def activation_function(block: Block) -> nn.Module:
    """The activation function of a block's MLP, which is no mixture of experts."""
    act: nn.Module = getattr(block.mlp, block.arch.mlp_act)
    return act


def activation_ratio(act: Callable[[Tensor], Tensor], z: Float[Tensor, "*rows f"]) -> Float[Tensor, "*rows f"]:
    """``act(z) / z``, and the slope of ``act`` at zero where z is next to it."""
    step = z.new_full((1,), 1e-6)
    slope = (act(step) - act(-step)) / (2 * step)
    near_zero = z.abs() < _TINY
    return torch.where(near_zero, slope, act(z) / torch.where(near_zero, 1.0, z))


def _slope(act: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """The derivative of an activation function, elementwise."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        return torch.autograd.grad(act(leaf).sum(), leaf)[0]


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def _weights(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias of a linear module, or of GPT-2's Conv1D, which stores [in, out]."""
    weight = module.weight.detach()
    if isinstance(module, torch.nn.Linear):
        return weight, None if module.bias is None else module.bias.detach()
    return weight.T, module.bias.detach()
