"""Gated (Rajamanoharan et al. 2024): one affine map decides whether a feature is active, another its value.

gate = u + b_enc, magnitude = exp(r_mag) * u + b_mag with u = x @ enc.T shared. The penalty sits on relu(gate), which
also has to reconstruct the target through a frozen decoder. At inference it is a JumpReLU, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechstudy.dictionaries.architectures.base import Context, Encoded, LearnedOnly, Passed, upper_quantile
from mechstudy.dictionaries.architectures.penalties import PENALTIES
from mechstudy.dictionaries.codes import codes_between
from mechstudy.dictionaries.training.data_parallel import ProcessGroup
from mechstudy.dictionaries.weights import Weights


@dataclass(frozen=True)
class Gated(LearnedOnly):
    """k: target L0; training adjusts the penalty's weight to reach it."""

    k: int
    penalty: str = "l1"
    needs_control: bool = True

    def start(self, pre_NF: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Architecture.start`."""
        zeros = torch.zeros_like(pre_NF[0])
        return zeros - upper_quantile(pre_NF, self.k), {"r_mag": zeros, "b_mag": zeros.clone()}

    def encode(
        self, pre_NF: Tensor, weights: Weights, guess: float | None, dense_dtype: torch.dtype, group: ProcessGroup
    ) -> Encoded:
        """See `Architecture.encode`."""
        gain, at_gate = gate_as_threshold(weights.b_enc, weights.extra["r_mag"], weights.extra["b_mag"])
        codes = codes_between(pre_NF, (-at_gate / gain).clamp_min(0.0), dense_dtype=dense_dtype)
        magnitude = codes.values * codes.per_feature(gain) + codes.per_feature(at_gate)
        return Encoded(codes.with_values(magnitude.clamp_min(0.0)))

    def backward(self, context: Context) -> Passed:
        """See `Architecture.backward`."""
        weights, codes = context.weights, context.codes
        through = context.d_values * (codes.values > 0)
        gain = weights.extra["r_mag"].exp()
        gained = through * codes.per_feature(gain)
        u = codes.at(context.pre_NF).to(through.dtype) - codes.per_feature(weights.b_enc)

        gate = codes_between(context.pre_NF, torch.zeros_like(gain), dense_dtype=context.dense_dtype)
        error = gate.times(context.dec_FD) + context.rest_ND
        scale = 1.0 / (context.n_rows * error.shape[1])
        phi = PENALTIES[self.penalty]
        norms = gate.per_feature(context.norms_F)
        s = gate.values * norms
        per_row = context.coefficient / context.n_rows
        slope = phi.slope(s) * (gate.values > 0) * per_row
        to_gate = gate.products(error, context.dec_FD) * (2.0 * scale) * (gate.values > 0) + slope * norms
        return Passed(
            [(codes, gained), (gate, to_gate)],
            [(gate, to_gate)],
            extra={"r_mag": codes.sum_features(gained * u), "b_mag": codes.sum_features(through)},
            to_norms=gate.sum_features(slope * gate.values),
            penalty=error.square().sum() * scale + (phi.value(s) * (gate.values > 0)).sum() * per_row,
        )

    def at_inference(self, weights: Weights, threshold: float | None) -> tuple[Weights, Tensor | None]:
        """See `Architecture.at_inference`."""
        gain, bound = gate_as_threshold(weights.b_enc, weights.extra["r_mag"], weights.extra["b_mag"])
        folded = Weights(weights.enc * gain[:, None], weights.extra["b_mag"], weights.dec, weights.b_dec, weights.skip)
        return folded, bound.clamp_min(0.0)


def gate_as_threshold(b_gate_F: Tensor, r_mag_F: Tensor, b_mag_F: Tensor) -> tuple[Tensor, Tensor]:
    """(gain, magnitude at which the gate opens), [F] each: exp(r_mag), and b_mag - gain * b_gate.

    So gate > 0 and magnitude > 0 is magnitude > max(0, that): a gated encoder is the JumpReLU with the encoder's rows
    times the gain, bias b_mag and that threshold.
    """
    gain = r_mag_F.exp()
    return gain, b_mag_F - gain * b_gate_F
