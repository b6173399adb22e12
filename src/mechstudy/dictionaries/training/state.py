"""State of a training run, and its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.training.initialise import Normalisation
from mechstudy.dictionaries.training.optimizer import Adam
from mechstudy.dictionaries.training.sparsity_controller import START
from mechstudy.dictionaries.weights import Scratch, Weights, large_empty
from mechstudy.store.checkpoint import load_checkpoint, save_checkpoint

_NORMALISATION = ("mean_in", "mean_out", "spread_in", "spread_out")


@dataclass
class TrainState:
    """A run after `step` steps.

    threshold: running mean of the smallest kept activation (BatchTopK; normalised units), or None.
    last_minimum: the last batch's smallest kept activation, where the next batch's search begins.
    control: integral of the controller of the penalty's coefficient; last_l0: its input.
    health: state of `health.Health`.
    average: moving averages of the weights, if the recipe has `ema`.
    left_out: rows with NaN or infinity.
    rows_since_fired [F] int64: rows since each feature was last active.
    """

    weights: Weights
    normalisation: Normalisation
    precision: str
    rows_since_fired: Tensor
    optimizer: Adam
    step: int = 0
    rows: int = 0
    left_out: int = 0
    threshold: float | None = None
    last_minimum: float | None = None
    control: float = START
    last_l0: float | None = None
    health: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict, repr=False)
    dead: Tensor | None = field(default=None, repr=False)
    scratch: Scratch = field(default_factory=Scratch, repr=False)

    @classmethod
    def fresh(cls, weights: Weights, normalisation: Normalisation, precision: str, device: str) -> TrainState:
        """The state before the first step."""
        moved = Weights.of(
            {name: large_empty(tuple(w.shape), w.dtype, torch.device(device)).copy_(w) for name, w in weights.named()}
        )
        return cls(
            weights=moved,
            normalisation=normalisation,
            precision=precision,
            rows_since_fired=torch.zeros(len(moved.b_enc), dtype=torch.int64, device=device),
            optimizer=Adam(moved),
        )

    def observe_codes(self, fired: Tensor, n_rows: int, dead_after: int) -> None:
        """Advance the counters by a batch, and update `dead`, the indices of dead features."""
        self.rows_since_fired.add_(n_rows).masked_fill_(fired, 0)
        self.dead = (self.rows_since_fired >= dead_after).nonzero().squeeze(1)
        self.rows += n_rows

    def observe_weights(self, decay: float) -> None:
        """Update the moving average of the weights, which starts at the first step's weights."""
        for name, weight in self.weights.named():
            if name in self.average:
                self.average[name].lerp_(weight, 1.0 - decay)
            else:
                self.average[name] = weight.clone()

    def observe_minimum(self, minimum: float, rate: float) -> None:
        """Update the running threshold by the smallest kept activation of a BatchTopK batch."""
        self.threshold = minimum if self.threshold is None else self.threshold + rate * (minimum - self.threshold)
        self.last_minimum = minimum

    def save(self, path: Path, fingerprint: dict[str, Any]) -> None:
        """Write the checkpoint; a resumed run must have the same `fingerprint`."""
        tensors = {f"weights.{name}": tensor for name, tensor in self.weights.named()}
        for name, (mean, square) in self.optimizer.moments.items():
            tensors |= {f"adam.exp_avg.{name}": mean, f"adam.exp_avg_sq.{name}": square}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        tensors["rows_since_fired"] = self.rows_since_fired
        for name in _NORMALISATION:
            tensor = getattr(self.normalisation, name)
            if tensor is not None:
                tensors[name] = tensor
        state = {
            "fingerprint": fingerprint,
            "step": self.step,
            "rows": self.rows,
            "left_out": self.left_out,
            "precision": self.precision,
            "threshold": self.threshold,
            "last_minimum": self.last_minimum,
            "control": self.control,
            "last_l0": self.last_l0,
            "health": self.health,
            "scale_in": self.normalisation.scale_in,
            "scale_out": self.normalisation.scale_out,
        }
        save_checkpoint(path, tensors, state)

    @classmethod
    def restore(cls, path: Path, fingerprint: dict[str, Any], device: str, dead_after: int) -> TrainState | None:
        """Read the checkpoint at `path`; None if it does not exist.

        Raises:
            MechstudyError: it is damaged, or of another configuration.
        """
        checkpoint = load_checkpoint(path)
        if checkpoint is None:
            return None
        tensors, state = checkpoint
        other = state.get("fingerprint", {})
        differing = sorted(key for key in {*fingerprint, *other} if fingerprint.get(key) != other.get(key))
        if differing:
            raise MechstudyError(
                "the checkpoint is of another training configuration",
                where=str(path),
                facts={key: f"{other.get(key)} in the checkpoint, {fingerprint.get(key)} now" for key in differing},
                fix="delete the checkpoint to train from the beginning, or restore the configuration",
            )
        try:
            prefix = "weights."
            trained = {n.removeprefix(prefix): t.to(device) for n, t in tensors.items() if n.startswith(prefix)}
            if missing := [n for n in ("enc", "b_enc", "dec", "b_dec") if n not in trained]:
                raise KeyError(f"weights.{missing[0]}")
            if missing := [n for n in ("mean_in", "mean_out") if n not in tensors]:
                raise KeyError(missing[0])
            weights = Weights.of(trained)
            result = cls.fresh(
                weights,
                Normalisation(
                    scale_in=state["scale_in"],
                    scale_out=state["scale_out"],
                    **{name: tensors[name].to(device) for name in _NORMALISATION if name in tensors},
                ),
                state["precision"],
                device,
            )
            for name in result.optimizer.moments:
                mean, square = (tensors[f"adam.{key}.{name}"].to(device) for key in ("exp_avg", "exp_avg_sq"))
                result.optimizer.moments[name] = (mean, square)
            result.optimizer.count = state["step"]
            result.rows_since_fired = tensors["rows_since_fired"].to(device)
            result.step, result.rows, result.left_out = state["step"], state["rows"], state["left_out"]
            result.threshold, result.last_minimum = state["threshold"], state["last_minimum"]
            result.control, result.last_l0 = state["control"], state["last_l0"]
            result.health = state["health"]
            averages = {n.removeprefix("average."): t for n, t in tensors.items() if n.startswith("average.")}
            result.average = {name: tensor.to(device) for name, tensor in averages.items()}
        except KeyError as error:
            raise MechstudyError(
                f"the checkpoint lacks {error}", where=str(path), fix="delete the file to start again"
            ) from error
        result.dead = (result.rows_since_fired >= dead_after).nonzero().squeeze(1)
        return result
