"""Programs of named variables, and the losses that train components of a transformer to hold exactly these variables.

Each variable of a program is aligned with some components. Interchange interventions (Geiger et al. 2112.00826) give
these components the values that they hold on another prompt; the answer must then be the program's with the variable
of that prompt. In strict interchange training (SIIT, Gupta et al. 2407.14494) all other components may hold whatever
they hold on any prompt, and the answer must not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechstudy.circuits.components import Component, Components, component_at
from mechstudy.circuits.donors import Donors
from mechstudy.core.errors import MechstudyError
from mechstudy.models.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class Variable:
    """A step of a program.

    Args:
        name: of the variable.
        reads: the inputs and earlier variables that it is computed from.
        compute: its whole-numbered values, from those of what it reads.
        nodes: the components that hold it, ``("head.1.0@last",)``.
    """

    name: str
    reads: tuple[str, ...]
    compute: Callable[..., Tensor]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class CausalProgram:
    """Variables in the order in which they are computed; the last one is the answer, as a token id."""

    variables: tuple[Variable, ...]

    def values(self, inputs: Mapping[str, Int[Tensor, " b"]]) -> dict[str, Int[Tensor, " b"]]:
        """The value of every input and variable."""
        n = len(next(iter(inputs.values())))
        return self.interchanged(inputs, {}, torch.zeros(n, len(self.variables), dtype=torch.bool))

    def interchanged(
        self,
        inputs: Mapping[str, Int[Tensor, " b"]],
        source: Mapping[str, Int[Tensor, " b"]],
        swapped_BV: Bool[Tensor, "b v"],
    ) -> dict[str, Int[Tensor, " b"]]:
        """The values when some variables have those of ``source``; what reads them is computed from these."""
        values = dict(inputs)
        for variable, swapped_B in zip(self.variables, swapped_BV.T, strict=True):
            own = variable.compute(*(values[name] for name in variable.reads))
            values[variable.name] = torch.where(swapped_B, source.get(variable.name, own), own)
        return values

    @property
    def nodes(self) -> tuple[Component, ...]:
        """Every aligned component."""
        return tuple(component_at(node) for variable in self.variables for node in variable.nodes)


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of one length, the number of each token's position name, and the program's inputs."""

    tokens_BT: Int[Tensor, "b t"]
    position_BT: Int[Tensor, "b t"]
    inputs: Mapping[str, Int[Tensor, " b"]]

    def rows(self, some_R: Int[Tensor, " r"]) -> Batch:
        """Some of the prompts."""
        inputs = {name: value_B[some_R] for name, value_B in self.inputs.items()}
        return Batch(self.tokens_BT[some_R], self.position_BT[some_R], inputs)


@dataclass(frozen=True, eq=False)
class Swaps:
    """What is replaced on each prompt of a batch, by values of the prompt number ``source_B``.

    ``variable_BV`` are the variables of the interchange loss, ``free_BN`` the nodes of the strictness loss.
    """

    source_B: Int[Tensor, " b"]
    variable_BV: Bool[Tensor, "b v"]
    free_BN: Bool[Tensor, "b n"]


@dataclass(frozen=True)
class Losses:
    """The losses of strict interchange training, means over prompts.

    ``behaviour``: cross entropy of the program's answers. ``interchange``: the same where a variable's components hold
    another prompt's values, of the program's answers with that variable. ``strictness``: where components without a
    variable do, the mean squared change of the answers' logits, each without their mean. ``mediation``, which is not
    in the paper: where the answer's components do, the same of the difference from the other prompt's logits, so that
    nothing reaches the logits beside the answer; 0 of a batch without such prompts.
    """

    behaviour: Float[Tensor, ""]
    interchange: Float[Tensor, ""]
    strictness: Float[Tensor, ""]
    mediation: Float[Tensor, ""]


class StrictInterchange:
    """A model, its components at named positions, and the program that they are aligned with.

    Args:
        model: the model.
        components: its nodes.
        program: the program.
        answers_A: the token ids of all answers.

    Raises:
        MechstudyError: a node of the program is not among the components, or belongs to two variables.
    """

    def __init__(
        self, model: LanguageModel, components: Components, program: CausalProgram, answers_A: Int[Tensor, " a"]
    ) -> None:
        self.model, self.components, self.program = model, components, program
        self._answers_A = answers_A
        self.aligned_VN = torch.zeros(len(program.variables), len(components.nodes), dtype=torch.bool)
        for number, variable in enumerate(program.variables):
            self.aligned_VN[number, components.index(variable.nodes)] = True
        if len(set(program.nodes)) < len(program.nodes):
            raise MechstudyError("two variables are aligned with one component", fix="components of its own for each")

    def draw(self, n: int, generator: torch.Generator) -> Swaps:
        """Random swaps of a batch: one variable of each prompt, and a random share of the free nodes, often all."""
        variables, nodes = self.aligned_VN.shape
        source_B = torch.randperm(n, generator=generator)
        variable_B = torch.randint(variables, (n,), generator=generator)
        share_B1 = 2 * torch.rand(n, 1, generator=generator)  # all of them on half of the prompts
        free_BN = torch.rand(n, nodes, generator=generator) < share_B1
        variable_BV = torch.nn.functional.one_hot(variable_B, variables).bool()
        return Swaps(source_B, variable_BV, free_BN & ~self.aligned_VN.any(0))

    def losses(self, batch: Batch, swaps: Swaps) -> Losses:
        """The losses of a batch.

        Logits that others are compared with get no gradient. Swapped values do: both prompts' runs are trained.
        """
        plain = self.model.forward(batch.tokens_BT, capture=self.components.reads, grad=True)
        assert plain.logits is not None
        donors = Donors(
            {site: x_BTW[swaps.source_B] for site, x_BTW in plain.activations.items()},
            torch.ones_like(batch.position_BT, dtype=torch.bool),
            batch.position_BT,
        )
        held_BN = (swaps.variable_BV[..., None] & self.aligned_VN).any(1)
        swapped = self.model.forward(
            batch.tokens_BT.repeat(2, 1),
            edits=self.components.edits(torch.cat([held_BN, swaps.free_BN]), donors),
            grad=True,
        )
        assert swapped.logits is not None
        interchanged_BV, strict_BV = swapped.logits.chunk(2)
        own = self.program.values(batch.inputs)
        source = {name: value_B[swaps.source_B] for name, value_B in own.items()}
        other = self.program.interchanged(batch.inputs, source, swaps.variable_BV)
        answer, answer_B = self.program.variables[-1].name, swaps.variable_BV[:, -1]
        target_BV = plain.logits.detach()
        return Losses(
            torch.nn.functional.cross_entropy(plain.logits, own[answer]),
            torch.nn.functional.cross_entropy(interchanged_BV, other[answer]),
            self._squared(strict_BV - target_BV).mean(),
            self._squared(interchanged_BV - target_BV[swaps.source_B])[answer_B].sum() / answer_B.sum().clamp(min=1),
        )

    def _squared(self, change_BV: Tensor) -> Tensor:
        """The mean squared change of each prompt's answers' logits, without their mean."""
        change_BA = change_BV[:, self._answers_A]
        return (change_BA - change_BA.mean(1, keepdim=True)).square().mean(1)


@dataclass(frozen=True)
class Training:
    """How a model is trained: AdamW with a rate that rises over ``warmup`` steps and then falls like a cosine."""

    steps: int = 1400
    batch: int = 64
    lr: float = 4e-3
    warmup: int = 50
    weight_decay: float = 1.0
    strictness: float = 10.0  # what strictness and mediation are multiplied by


def train(setup: StrictInterchange, prompts: Batch, generator: torch.Generator, how: Training | None = None) -> Losses:
    """Trains a model in place, on random batches of prompts; returns the losses of the last batch.

    Args:
        setup: the model, its program and alignment.
        prompts: what batches are drawn from.
        generator: draws batches and swaps.
        how: steps, batch size, and so on.
    """
    how = how or Training()
    parameters = list(setup.model.hf.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=how.lr, weight_decay=how.weight_decay, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / how.warmup) * (1 + cos(pi * step / how.steps)) / 2
    )
    for _ in range(how.steps):
        batch = prompts.rows(torch.randint(len(prompts.tokens_BT), (how.batch,), generator=generator))
        losses = setup.losses(batch, setup.draw(how.batch, generator))
        total = losses.behaviour + losses.interchange + how.strictness * (losses.strictness + losses.mediation)
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    setup.model.hf.requires_grad_(False)
    return Losses(*(loss.detach() for loss in vars(losses).values()))
