"""What a graph explains at the model's output: linear functions of the final normed residual."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mechstudy.behaviours.contrast import Contrast, WholeAnswers
from mechstudy.circuits.graph import LogitNode
from mechstudy.circuits.linear_prompt import LinearisedPrompt
from mechstudy.circuits.rows import Target
from mechstudy.models.language_model import LanguageModel

_LISTED = 4  # tokens of a set that a label lists


@dataclass(frozen=True)
class LinearForm:
    """A scalar as graphs explain it: ``scale * <direction, final normed residual at position> + constant``.

    ``token``, ``probability`` and ``label`` describe its node in the graph.
    """

    position: int
    direction_D: Tensor
    scale: float
    constant: float
    token: int
    probability: float
    label: str

    def target(self, prompt: LinearisedPrompt) -> Target:
        """The scalar as a target of `direct_effects`, with its value on the clean prompt."""
        direction = self.direction_D.to(prompt.tokens_TD) * self.scale
        return output_target(prompt, self.position, direction, self.constant)

    def change(self, moved_TD: Float[Tensor, "t d"]) -> float:
        """Its change where the final normed residual changes by ``moved_TD``."""
        return float(moved_TD[self.position].double() @ (self.direction_D.double() * self.scale))

    def node(self, value: float) -> LogitNode:
        """Its node, labelled with its value."""
        return LogitNode(self.token, self.probability, f"{self.label} = {value:.3f}", self.position)


@runtime_checkable
class Explained(Protocol):
    """A function of the model's output whose first-order form at a prompt is a sum of linear ones."""

    @property
    def n_logits(self) -> int:
        """The number of last positions that it is a function of."""

    def forms(self, model: LanguageModel, prompt: LinearisedPrompt) -> list[LinearForm]:
        """The linear forms, which add up to the function's value on the clean prompt."""

    def value(self, logits_PV: Float[Tensor, "p v"], normed_PD: Float[Tensor, "p d"]) -> Float[Tensor, ""]:
        """The function of the model's own logits and final normed residual at the last positions, with its gradient."""


@dataclass(frozen=True)
class AnswerContrast:
    """Right answers against wrong ones, by their first tokens' logits at the last position, before any soft cap.

    Single logits and means of them are linear in the residual, so the form is the contrast itself. Log-sum-exp is not:
    its form has the clean prompt's softmax weights within each set, frozen, and their entropy as a constant, with which
    its value on the clean prompt is exact.
    """

    contrast: Contrast
    n_logits: int = 1

    def forms(self, model: LanguageModel, prompt: LinearisedPrompt) -> list[LinearForm]:
        """The one form of the contrast."""
        c, bias, scale = self.contrast, model.unembedding.bias, model.logit_scale
        normed_D = prompt.final_norm.forward(prompt.resid_final_TD)[-1]
        right, wrong = (_side(model, tokens, c.combine, normed_D) for tokens in (c.right, c.wrong))
        of_bias = 0.0 if bias is None else float(_mixed(bias, right) - _mixed(bias, wrong)) * scale
        weight = model.unembedding.weight
        return [
            LinearForm(
                prompt.n_positions - 1,
                _mixed(weight, right) - _mixed(weight, wrong),
                scale,
                of_bias + right.entropy - wrong.entropy,
                c.right[0],
                float(torch.softmax(prompt.logits_V.double(), -1)[list(c.right)].sum()),
                self._label(model),
            )
        ]

    def value(self, logits_PV: Float[Tensor, "p v"], normed_PD: Float[Tensor, "p d"]) -> Float64[Tensor, ""]:
        """The contrast."""
        return self.contrast.value(logits_PV[-1])

    def _label(self, model: LanguageModel) -> str:
        def of_side(tokens: Sequence[int]) -> str:
            texts = [f'logit("{text}")' for text in model.token_strings(tokens[:_LISTED])]
            if len(tokens) == 1:
                return texts[0]
            more = [f"{len(tokens) - _LISTED} more"] if len(tokens) > _LISTED else []
            return f"{self.contrast.combine}({', '.join(texts + more)})"

        return f"{of_side(self.contrast.right)} - {of_side(self.contrast.wrong)}"


@dataclass(frozen=True)
class AnswerTokens:
    """A whole right answer, teacher-forced, against the tokens of the wrong one up to where the two part.

    It is log p(right answer) - log p(wrong answer's tokens up to the first that differs), after the prompt. The graph
    is of the prompt and the right answer's tokens but the last; what the wrong answer's later tokens add needs other
    tokens in the context, and is no part of it. There is one form for each token: where the answers part, it is the
    difference of the two logits, since both have the same normaliser; after it, the token's log-probability. Tokens
    before it are the same on both sides and cancel. Forms are of first order at the clean prompt (softmax frozen), with
    a constant that makes values exact, and are of the model's own logits, after any soft cap.
    """

    answers: WholeAnswers

    @property
    def n_logits(self) -> int:
        """Tokens of the right answer from where it departs from the wrong one."""
        return len(self.answers.right) - self.answers.departure

    def forms(self, model: LanguageModel, prompt: LinearisedPrompt) -> list[LinearForm]:
        """One form for each token."""
        a, first = self.answers, prompt.n_positions - self.n_logits
        forms = []
        for k, token in enumerate(a.right[a.departure :]):
            text, other = model.token_strings([token, a.wrong[a.departure]])
            label = f'log p("{text}")' if k else f'logit("{text}") - logit("{other}")'
            forms.append(function_form(model, prompt, first + k, partial(self._share, k), token, label))
        return forms

    def value(self, logits_PV: Float[Tensor, "p v"], normed_PD: Float[Tensor, "p d"]) -> Float64[Tensor, ""]:
        """The sum over tokens."""
        return torch.stack([self._share(k, row_V) for k, row_V in enumerate(logits_PV)]).sum()

    def _share(self, k: int, logits_V: Tensor) -> Tensor:
        a, z_V = self.answers, logits_V.double()
        token = a.right[a.departure + k]
        return torch.log_softmax(z_V, 0)[token] if k else z_V[token] - z_V[a.wrong[a.departure]]


def function_form(
    model: LanguageModel,
    prompt: LinearisedPrompt,
    position: int,
    function: Callable[[Tensor], Tensor],
    token: int,
    label: str,
) -> LinearForm:
    """The first-order form of a function of one position's logits, exact in value on the clean prompt.

    Args:
        function: the model's own logits [V] -> a scalar, differentiable.
        token: the token that its node names.
    """
    normed_D = prompt.final_norm.forward(prompt.resid_final_TD)[position].detach().requires_grad_()
    with torch.enable_grad():
        logits_V = model.unembed(normed_D)
        value = function(logits_V)
        [direction_D] = torch.autograd.grad(value, [normed_D])
    constant = float(value.detach()) - float(direction_D.double() @ normed_D.detach().double())
    probability = float(torch.softmax(logits_V.detach().double(), 0)[token])
    return LinearForm(position, direction_D, 1.0, constant, token, probability, label)


@dataclass(frozen=True)
class _Side:
    """The tokens of one side with the weights of its first-order form, and the constant that makes the value exact."""

    tokens: tuple[int, ...]
    weights_M: Tensor
    entropy: float


def _side(model: LanguageModel, tokens: tuple[int, ...], combine: str, normed_D: Tensor) -> _Side:
    n = len(tokens)
    if n == 1 or combine == "mean":
        return _Side(tokens, torch.full((n,), 1 / n, dtype=torch.float64, device=normed_D.device), 0.0)
    W, b = model.unembedding.weight, model.unembedding.bias
    z_M = W[list(tokens)].double() @ normed_D.double() + (0.0 if b is None else b[list(tokens)].double())
    log_M = torch.log_softmax(z_M * model.logit_scale, 0)
    return _Side(tokens, log_M.exp(), -float(log_M.exp() @ log_M))


def _mixed(rows: Tensor, side: _Side) -> Tensor:
    """The weighted sum of a side's rows; the row itself, to the bit, where there is one."""
    if len(side.tokens) == 1:
        return rows[side.tokens[0]]
    return side.weights_M.to(rows.device) @ rows[list(side.tokens)].double()


def output_target(prompt: LinearisedPrompt, position: int, direction_D: Tensor, constant: float) -> Target:
    """``<direction, final normed residual at position> + constant`` with its value on the clean prompt."""
    normed = prompt.final_norm.forward(prompt.resid_final_TD)[position]
    value = float(direction_D.double() @ normed.double()) + constant
    return Target(len(prompt.layers), position, direction_D, constant, value)


def explained_targets(
    model: LanguageModel, prompt: LinearisedPrompt, explained: Explained
) -> tuple[list[Target], tuple[LogitNode, ...], Tensor]:
    """The targets of a function of the output, their nodes and their weights."""
    forms = explained.forms(model, prompt)
    targets = [form.target(prompt) for form in forms]
    nodes = tuple(form.node(target.value) for form, target in zip(forms, targets, strict=True))
    return targets, nodes, torch.ones(len(targets))


def top_logit_targets(
    model: LanguageModel, prompt: LinearisedPrompt, share: float, most: int
) -> tuple[list[Target], tuple[LogitNode, ...], Tensor]:
    """The fewest top logits whose probability reaches ``share``, at most ``most``, each minus the mean logit."""
    probabilities = torch.softmax(prompt.logits_V.double(), -1)
    top = probabilities.topk(most)
    n = min(most, int((top.values.cumsum(0) < share).sum()) + 1)
    W, b, scale = model.unembedding.weight, model.unembedding.bias, model.logit_scale
    mean_D = W.double().mean(0)
    targets, nodes = [], []
    for token, p in zip(top.indices[:n].tolist(), top.values[:n].tolist(), strict=True):
        direction = ((W[token].double() - mean_D) * scale).to(prompt.tokens_TD)
        constant = 0.0 if b is None else float(b[token].double() - b.double().mean()) * scale
        targets.append(output_target(prompt, prompt.n_positions - 1, direction, constant))
        nodes.append(LogitNode(token, p, f'Output "{model.token_strings([token])[0]}" (p={p:.3f})'))
    return targets, tuple(nodes), top.values[:n].cpu().float()
