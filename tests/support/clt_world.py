"""Random cross-layer transcoders of a model, for tests."""

from __future__ import annotations

import torch

from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder


def random_clt(
    model, *, n_features: int = 24, seed: int = 0, site_in: str = "mlp_in", relu: bool = False
) -> CrossLayerTranscoder:
    """One with JumpReLU features, in float64, of which about a quarter are active on a row; or ReLU, about half."""
    g = torch.Generator().manual_seed(seed)
    n_layers, d = model.n_layers, model.d_model

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return CrossLayerTranscoder(
        draw(n_layers, n_features, d) / d**0.5,
        0.1 * draw(n_layers, n_features),
        (0.3 + 0.3 * draw(n_layers, n_features).abs()) * (not relu),
        [0.3 * draw(n_features, n_layers - layer, d) for layer in range(n_layers)],
        0.1 * draw(n_layers, d),
        site_in=site_in,
        metadata={"model_name": "tiny"},
    )


def without_later_writes(clt: CrossLayerTranscoder) -> CrossLayerTranscoder:
    """The same, but each feature writes to its own layer only."""
    decoders = []
    for W in clt.W_dec:
        own = torch.zeros_like(W)
        own[:, 0] = W[:, 0]
        decoders.append(own)
    return CrossLayerTranscoder(clt.W_enc, clt.b_enc, clt.threshold, decoders, clt.b_dec, site_in=clt.site_in)
