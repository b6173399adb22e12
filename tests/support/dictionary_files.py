"""Dictionaries of every file format, made by hand, with the codes and reconstructions of the other tools' formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.stored import DictionaryMeta

D, F, K, N = 6, 20, 3, 30


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = draw(N, D, seed=0)


def largest(pre: Tensor, k: int = K) -> Tensor:
    values, places = pre.relu().topk(k, 1)
    return torch.zeros_like(pre).scatter(1, places, values)


def learned(name: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A state dict of the class, and the codes and reconstructions of X by the class's own formulas."""
    E, D_, b, c = draw(F, D, seed=1), draw(D, F, seed=2), draw(F, seed=3), draw(D, seed=4)
    linear = {"encoder.weight": E, "decoder.weight": D_}
    k, threshold = torch.tensor(K), torch.tensor(0.4, dtype=torch.float64)
    centred = (X - c) @ E.T + b
    if name == "AutoEncoder":
        norms = D_.norm(dim=0)
        f = centred.relu() * norms
        return linear | {"encoder.bias": b, "bias": c}, f, f @ (D_ / norms).T + c
    if name == "AutoEncoderNew":
        f = (X @ E.T + b).relu()
        return linear | {"encoder.bias": b, "decoder.bias": c}, f, f @ D_.T + c
    if name == "GatedAutoEncoder":
        r, m = draw(F, seed=5) / 2, draw(F, seed=6) / 2
        u = (X - c) @ E.T
        f = (u + b > 0) * (r.exp() * u + m).relu()
        return linear | {"gate_bias": b, "mag_bias": m, "r_mag": r, "decoder_bias": c}, f, f @ D_.T + c
    if name == "AutoEncoderTopK":
        f = largest(centred)
        return linear | {"encoder.bias": b, "b_dec": c, "k": k, "threshold": threshold}, f, f @ D_.T + c
    f = centred.relu() * (centred > threshold)
    if name == "BatchTopKSAE":
        return linear | {"encoder.bias": b, "b_dec": c, "k": k, "threshold": threshold}, f, f @ D_.T + c
    own = {"W_enc": E.T.contiguous(), "b_enc": b, "W_dec": D_.T.contiguous(), "b_dec": c}
    if name == "MatryoshkaBatchTopKSAE":
        sizes = torch.tensor([5, 15])
        return own | {"k": k, "threshold": threshold, "group_sizes": sizes}, f, f @ D_.T + c
    thresholds = draw(F, seed=7).abs()
    pre = X @ E.T + b
    f = (pre * (pre > thresholds)).relu()
    return own | {"threshold": thresholds}, f, f @ D_.T + c


CLASSES = ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
           "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder")  # fmt: skip


def transcoder(seed: int, skip: bool = True) -> Dictionary:
    kind = "skip_transcoder" if skip else "transcoder"
    meta = DictionaryMeta(kind, "jumprelu", D, D, F, None, f"mlp_in.{seed}", f"mlp_out.{seed}")
    return Dictionary(
        meta, W_enc=draw(D, F, seed=seed + 1), b_enc=draw(F, seed=seed + 2), W_dec=draw(F, D, seed=seed + 3),
        b_dec=draw(D, seed=seed + 4), W_skip=draw(D, D, seed=seed + 5) if skip else None,
        threshold=draw(F, seed=seed + 6).abs(),
    )  # fmt: skip


def clt(jumps: bool, L: int = 3) -> dict:
    return {
        "enc": [draw(F, D, seed=layer) for layer in range(L)],
        "b_enc": [draw(F, seed=10 + layer) for layer in range(L)],
        "dec": [draw(F, L - layer, D, seed=20 + layer) for layer in range(L)],
        "b_dec": draw(L, D, seed=30),
        "threshold": [draw(F, seed=40 + layer).abs() for layer in range(L)] if jumps else None,
    }


def trained_clt(n_layers: int) -> CrossLayerTranscoder:
    parts = clt(True, n_layers)
    stacked = [torch.stack(parts[name]) for name in ("enc", "b_enc", "threshold")]
    return CrossLayerTranscoder(*stacked, parts["dec"], parts["b_dec"], k=n_layers)
