"""Targets of a user's own: a direction of the final residual, or a function of the logits, at one position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.circuits.linear_prompt import LinearisedPrompt
from mechstudy.circuits.targets import LinearForm, function_form
from mechstudy.core.errors import MechstudyError
from mechstudy.models.language_model import LanguageModel

LogitFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Direction:
    """``<direction, final normed residual>`` at the ``n_logits``-th position from the end: linear, so exact."""

    direction_D: Tensor
    n_logits: int = 1
    label: str = "direction"

    def forms(self, model: LanguageModel, prompt: LinearisedPrompt) -> list[LinearForm]:
        """The one form."""
        position, direction_D = prompt.n_positions - self.n_logits, self.direction_D.to(prompt.tokens_TD)
        token, probability = _promoted(model, prompt, position, direction_D)
        return [LinearForm(position, direction_D, 1.0, 0.0, token, probability, self.label)]

    def value(self, logits_PV: Float[Tensor, "p v"], normed_PD: Float[Tensor, "p d"]) -> Float[Tensor, ""]:
        """The inner product."""
        return normed_PD[0] @ self.direction_D.to(normed_PD)


@dataclass(frozen=True, eq=False)
class OfLogits:
    """A function of the logits at the ``n_logits``-th position from the end, explained to first order at the prompt.

    A constant makes its value exact.
    """

    function: LogitFunction
    n_logits: int = 1
    label: str = "function of the logits"

    def forms(self, model: LanguageModel, prompt: LinearisedPrompt) -> list[LinearForm]:
        """The one form.

        Raises:
            MechstudyError: the function returns no scalar tensor, or one that the logits do not change.
        """
        position = prompt.n_positions - self.n_logits
        form = function_form(model, prompt, position, self._checked, 0, self.label)
        token, probability = _promoted(model, prompt, position, form.direction_D)
        return [replace(form, token=token, probability=probability)]

    def value(self, logits_PV: Float[Tensor, "p v"], normed_PD: Float[Tensor, "p d"]) -> Float[Tensor, ""]:
        """The function of the logits."""
        return self._checked(logits_PV[0])

    def _checked(self, logits_V: Tensor) -> Tensor:
        value = self.function(logits_V)
        if not isinstance(value, Tensor) or value.dim() != 0:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise MechstudyError(
                f"the target returned {what}, not a scalar tensor",
                where="target",
                fix="a function of logits [vocabulary], such as lambda z: z[11] - z.logsumexp(0)",
            )
        if not value.requires_grad:
            raise MechstudyError(
                "the target does not change with the logits, so no graph can explain it",
                where="target",
                fix="a differentiable function: no argmax, no numpy, no .item()",
            )
        if not bool(torch.isfinite(value)):
            raise MechstudyError(
                f"the target is {float(value.detach())} on this prompt",
                where="target",
                fix="a function with a finite value",
            )
        return value


def own_target(model: LanguageModel, target: object, n_logits: int) -> Direction | OfLogits:
    """The target of a user as something that graphs explain.

    Raises:
        MechstudyError: neither a function nor a finite direction [d_model] with a coordinate other than 0.
    """
    if callable(target) and not isinstance(target, Tensor):
        name = getattr(target, "__name__", "")
        return OfLogits(cast(LogitFunction, target), n_logits, name if name and name != "<lambda>" else OfLogits.label)
    fix = f"a tensor of {model.d_model} numbers, or a function of the logits"
    if not isinstance(target, Tensor):
        raise MechstudyError(f"a {type(target).__name__} is no target", where="target", fix=fix)
    if target.shape != (model.d_model,):
        facts = {"model": f"{model.name} is {model.d_model} wide"}
        raise MechstudyError(f"the direction has shape {tuple(target.shape)}", where="target", facts=facts, fix=fix)
    if not bool(torch.isfinite(target).all()) or not bool(target.any()):
        raise MechstudyError("the direction is not finite, or zero", where="target", fix=fix)
    return Direction(target.detach(), n_logits)


def _promoted(model: LanguageModel, prompt: LinearisedPrompt, position: int, direction_D: Tensor) -> tuple[int, float]:
    """The token that the direction promotes most, which its node names, and that token's probability."""
    token = int((model.unembedding.weight @ direction_D.to(model.unembedding.weight)).argmax())
    logits_V = model.unembed(prompt.final_norm.forward(prompt.resid_final_TD)[position])
    return token, float(torch.softmax(logits_V.double(), -1)[token])
