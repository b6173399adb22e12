"""Small worlds to train dictionaries on, and dictionaries made by hand."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.stored import DictionaryMeta, expected_shapes

D_IN, D_OUT, F, K = 6, 5, 24, 3


class SparseWorld:
    """Rows x = sum of about `active` of `n_true` unit features with positive strengths, plus an offset.

    With `other_target`, y is the sum of strength x another direction per feature (what a transcoder must
    learn); else y is x. Batch i depends on (seed, i) alone, like a RowReader's.
    """

    def __init__(
        self,
        *,
        d: int = 24,
        n_true: int = 48,
        active: int = 3,
        batch_size: int = 256,
        other_target: bool = False,
        offset: float = 5.0,
        seed: int = 0,
    ) -> None:
        self.d_in = self.d_out = d
        self.batch_size = batch_size
        self.seed = seed
        self.share = active / n_true
        self.other_target = other_target
        generator = torch.Generator().manual_seed(1_000 + seed)
        self.features = _unit(torch.randn(n_true, d, generator=generator))
        self.targets = _unit(torch.randn(n_true, d, generator=generator))
        self.offset = offset * torch.randn(d, generator=generator)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        shape = (self.batch_size, len(self.features))
        on = torch.rand(shape, generator=generator) < self.share
        strength = on * (0.5 + torch.rand(shape, generator=generator))
        x = strength @ self.features + self.offset
        return x, (strength @ self.targets - self.offset if self.other_target else x)

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        step = start
        while True:
            yield self.batch(step)
            step += 1


class StoppingWorld(SparseWorld):
    """Dies when the training (which reads after the statistics) asks for batch `stop_at`, like a killed process."""

    stop_at = 20
    reads = 0

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.reads += 1
        for step, batch in enumerate(super().batches(start), start):
            if step == self.stop_at and self.reads == 2:
                raise KeyboardInterrupt
            yield batch


def exact_sae(d: int, site: str, **metadata) -> Dictionary:
    """Feature pairs (+e_i, -e_i): reconstructs every row exactly."""
    eye = torch.eye(d, dtype=torch.float64)
    both = torch.cat([eye, -eye])
    meta = DictionaryMeta("sae", "jumprelu", d, d, 2 * d, None, site, site, metadata)
    zeros = torch.zeros(2 * d, dtype=torch.float64)
    return Dictionary(meta, W_enc=both.T, b_enc=zeros, W_dec=both, b_dec=zeros[:d], threshold=zeros)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def random_dictionary(kind="transcoder", activation="topk", dtype=torch.float64, **metadata) -> Dictionary:
    generator = torch.Generator().manual_seed(0)
    meta = DictionaryMeta(
        kind=kind,
        activation=activation,
        d_in=D_IN,
        d_out=D_IN if kind == "sae" else D_OUT,
        d_sae=F,
        k=K,
        site_in="mlp_out.3" if kind == "sae" else "mlp_in.3",
        site_out="mlp_out.3",
        metadata=metadata,
    )
    shapes = expected_shapes(meta)
    tensors = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    if activation == "jumprelu":
        tensors["threshold"] = tensors["threshold"].abs()
    return Dictionary(meta, **{name: tensor.to(dtype) for name, tensor in tensors.items()})


def rows(n: int = 40) -> torch.Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def dictionary_of(decoder: torch.Tensor, encoder: torch.Tensor | None = None, site: str = "mlp_out.1") -> Dictionary:
    n, d = decoder.shape
    meta = DictionaryMeta("sae", "topk", d, d, n, 1, site, site)
    encoder = decoder if encoder is None else encoder
    return Dictionary(
        meta, W_enc=encoder.T.contiguous(), b_enc=torch.zeros(n), W_dec=decoder.clone(), b_dec=torch.zeros(d)
    )
