"""The neurons of an MLP as a basis: as if the MLP were a dictionary without error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.linear_mlp import mlp_down, neurons_of


@dataclass(frozen=True)
class NeuronsMeta:
    """What `DictionaryMeta` says of a dictionary: kind, sites and widths."""

    d_in: int
    d_out: int
    d_sae: int
    site_in: str
    site_out: str
    kind: str = "neurons"
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Neurons:
    """The neurons of a layer's MLP: exact, and there for every model whose MLPs have a down projection.

    Neuron j holds what the down projection reads, and writes its column of the down projection. Where a family norms
    the MLP's output, what a neuron adds to the residual stream also depends on the norm's scale at the prompt.

    Raises:
        MechstudyError: the MLP is a mixture of experts.
    """

    def __init__(self, model: LanguageModel, layer: int) -> None:
        block = model.blocks[layer]
        if block.mlp_down is None:
            raise MechstudyError(
                f"layer {layer} of {model.name} has no neurons: its MLP is a mixture of experts",
                fix="attribution.elsewhere: errors",
            )
        self._block = block
        self.down_EF = mlp_down(block)[0]
        d_out, n = self.down_EF.shape
        self.cfg = NeuronsMeta(d_out, d_out, n, f"mlp_in.{layer}", f"mlp_out.{layer}")

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows f"]:
        """What the neurons hold, from the MLP's input."""
        return neurons_of(self._block, x)

    def is_valid(self, x: Float[Tensor, "*rows d"], y: Float[Tensor, "*rows d"] | None = None) -> Bool[Tensor, "*rows"]:
        """True: neurons have no sinks."""
        return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)

    @property
    def sites_out(self) -> tuple[str, ...]:
        """The layer's own ``mlp_out``."""
        return (self.cfg.site_out,)

    def decoder_rows(self, features: Int[Tensor, " n"] | Sequence[int]) -> Float[Tensor, "n d"]:
        """What each of some neurons writes per unit of activation, before a norm after the MLP."""
        return self.down_EF.T[features]

    def writes(self, features: Int[Tensor, " n"] | Sequence[int]) -> tuple[Float[Tensor, "n d"], ...]:
        """The same, for each of `sites_out`."""
        return (self.decoder_rows(features),)


Basis = Dictionary | Neurons


def with_neurons(
    model: LanguageModel, dictionaries: Mapping[int, Dictionary], layers: Sequence[int]
) -> dict[int, Basis]:
    """The dictionaries, and neurons at those of ``layers`` that have no dictionary and no mixture of experts."""
    free = [layer for layer in layers if layer not in dictionaries and model.blocks[layer].mlp_down is not None]
    return {**dictionaries, **{layer: Neurons(model, layer) for layer in free}}
