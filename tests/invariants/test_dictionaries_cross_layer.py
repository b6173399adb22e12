"""Cross-layer transcoders and crosscoders: their formulas, in float64, and that they find what was put there."""

import math

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries import codes as codes_module
from mechstudy.dictionaries.architectures import architecture_of, cross_layer
from mechstudy.dictionaries.architectures.jumprelu import L0_STRENGTH
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.crosscoder import decoder_by_site, relative_norms
from mechstudy.dictionaries.training.gradients import loss_and_gradients
from mechstudy.dictionaries.training.rows import rows_of
from mechstudy.dictionaries.training.trainer import train
from mechstudy.dictionaries.weights import Weights
from tests.support.objectives import BANDWIDTH, COEFFICIENT, PHI, Jump, Step, draw

L, N, D_IN, D_OUT, F, K = 3, 30, 6, 5, 8, 5


def test_pairs_are_numbered_source_by_source():
    assert [cross_layer.pair(L, s, t) for s in range(L) for t in range(s, L)] == list(range(cross_layer.n_pairs(L)))


def some_weights(activation: str) -> Weights:
    extra = {"log_threshold": draw(L * F, seed=6) / 4 - 0.5} if activation == "jumprelu" else {}
    dec = draw(cross_layer.n_pairs(L), F, D_OUT, seed=3)
    return Weights(draw(L * F, D_IN, seed=1), draw(L * F, seed=2) / 2, dec, draw(L * D_OUT, seed=4), None, extra)


def textbook(activation: str, w: Weights, x, y):
    pre = torch.einsum("nld,lfd->nlf", x.view(N, L, D_IN), w.enc.view(L, F, D_IN)) + w.b_enc.view(L, F)
    flat = pre.reshape(N, L * F)
    extra_loss = 0.0
    if activation == "batchtopk":
        f = torch.where(flat >= flat.flatten().topk(N * K).values[-1], flat.relu(), torch.zeros_like(flat))
    elif activation == "relu":
        f = flat.relu()
        wide = [torch.cat([w.dec[cross_layer.pair(L, s, t)] for t in range(s, L)], 1) for s in range(L)]
        norms = torch.cat([torch.linalg.vector_norm(rows, dim=1) for rows in wide])
        extra_loss = COEFFICIENT * PHI["l1"](f * norms).sum() / N
    else:
        threshold = w.extra["log_threshold"].exp()
        f = Jump.apply(flat, threshold)
        l0 = Step.apply(flat, threshold, torch.ones_like(flat)).sum() / N
        extra_loss = L0_STRENGTH * COEFFICIENT * (l0 / K - 1) ** 2
    f = f.view(N, L, F)
    y_hat = w.b_dec.view(L, D_OUT) + torch.stack(
        [sum(f[:, s] @ w.dec[cross_layer.pair(L, s, t)] for s in range(t + 1)) for t in range(L)], 1
    )
    return (y_hat - y.view(N, L, D_OUT)).square().mean() + extra_loss


@pytest.mark.parametrize("held", ["sparse", "dense"])
@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu", "relu"])
def test_gradients_of_a_clt_equal_autograd_of_the_formula(activation, held, monkeypatch):
    monkeypatch.setattr(codes_module, "DENSE_FROM", {"sparse": math.inf, "dense": -1.0}[held])
    cfg = DictionaryConfig(kind="clt", n_sites=L, d_sae=L * F, k=K, activation=activation, bandwidth=BANDWIDTH)
    x, y, w = draw(N, L * D_IN, seed=8), draw(N, L * D_OUT, seed=9), some_weights(activation)
    found = loss_and_gradients(
        w, x, y, architecture_of(cfg), dense_dtype=torch.float64, coefficient=COEFFICIENT, n_sites=L
    )
    for _, tensor in w.named():
        tensor.requires_grad_()
    textbook(activation, w, x, y).backward()
    for (name, gradient), (_, tensor) in zip(found.gradients.named(), w.named(), strict=True):
        torch.testing.assert_close(gradient, tensor.grad, msg=lambda m, name=name: f"{name}: {m}")
        if name in found.squares:
            torch.testing.assert_close(found.squares[name], gradient.square().sum(-1).reshape(-1))


def layered_world(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [n, L, D], y [n, L, D]: features of layer l write to layers l and l+1; layers have scales of their own."""
    generator = torch.Generator().manual_seed(0)
    d, features = 16, 24
    reads = torch.nn.functional.normalize(torch.randn(L, features, d, generator=generator), dim=2)
    writes = torch.nn.functional.normalize(torch.randn(L, 2, features, d, generator=generator), dim=3)
    rows = torch.Generator().manual_seed(seed)
    on = (torch.rand(n, L, features, generator=rows) < 1 / 24) * (0.5 + torch.rand(n, L, features, generator=rows))
    scale = torch.tensor([1.0, 10.0, 100.0])[:, None]
    x = torch.einsum("nlf,lfd->nld", on, reads) * scale + 3.0
    y = torch.einsum("nlf,lfd->nld", on, writes[:, 0])
    y[:, 1:] += torch.einsum("nlf,lfd->nld", on[:, :-1], writes[:-1, 1])
    return x, y * scale - 1.0


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu"])
def test_a_clt_learns_what_crosses_layers_and_survives_its_file(activation, tmp_path):
    cfg = DictionaryConfig(kind="clt", n_sites=L, activation=activation, expansion=2, k=3)
    recipe = TrainConfig(steps=500, batch_size=512, lr=8e-3, tensorboard=False, precision="float32")
    clt = train(cfg, recipe, layered_world(20_000, 1))
    x, y = layered_world(2_000, 2)
    y_hat = clt.reconstruct(x)
    fvu = (y_hat - y).square().sum((0, 2)) / (y - y.mean(0)).square().sum((0, 2))
    assert fvu.max() < 0.2, fvu
    # Without what crosses, layers 1 and 2 could explain about half.
    f = clt.encode(x)
    assert 2.0 < float((f > 0).sum()) / len(x) < 4.0
    clt.save(tmp_path)
    again = CrossLayerTranscoder.load(tmp_path)
    torch.testing.assert_close(again.reconstruct(x), y_hat, rtol=0, atol=0)
    assert again.k == 3 and again.metadata["trained_as"] == activation


class DyingRows:
    """Rows that end in a kill at batch 20 of the training, which reads after the statistics."""

    def __init__(self, rows):
        self.rows, self.d_in, self.d_out, self.reads = rows, rows.d_in, rows.d_out, 0

    def batches(self, start=0):
        self.reads += 1
        for step, batch in enumerate(self.rows.batches(start), start):
            if step == 20 and self.reads > 1:
                raise KeyboardInterrupt
            yield batch


def test_a_killed_cross_layer_training_goes_on_to_the_same_bytes(tmp_path):
    cfg = DictionaryConfig(kind="clt", n_sites=L, activation="batchtopk", expansion=2, k=3)
    recipe = TrainConfig(steps=30, batch_size=256, tensorboard=False, precision="bfloat16", checkpoint_every=7)
    rows = layered_world(4_000, 1)
    straight = train(cfg, recipe, rows)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, recipe, DyingRows(rows_of(rows, 256, 0, L)), checkpoint=tmp_path / "c")
    resumed = train(cfg, recipe, rows, checkpoint=tmp_path / "c")
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_a_crosscoder_tells_shared_features_from_those_of_one_site():
    generator = torch.Generator().manual_seed(0)
    d, n = 20, 20_000
    directions = torch.nn.functional.normalize(torch.randn(3, 10, 2, d, generator=generator), dim=3)
    directions[1, :, 1] = 0.0  # the second ten are the first site's own, the third ten the second's
    directions[2, :, 0] = 0.0
    on = (torch.rand(n, 30, generator=generator) < 0.05) * (0.5 + torch.rand(n, 30, generator=generator))
    x = torch.einsum("nf,fsd->nsd", on, directions.flatten(0, 1)) * torch.tensor([1.0, 50.0])[:, None]
    cfg = DictionaryConfig(kind="crosscoder", n_sites=2, activation="batchtopk", d_sae=48, k=2)
    recipe = TrainConfig(
        steps=600, batch_size=512, lr=5e-3, dead_after_rows=38_400, tensorboard=False, precision="float32"
    )
    crosscoder = train(cfg, recipe, x, site_in="two sites")
    rows = decoder_by_site(crosscoder)
    norms = relative_norms(crosscoder)
    for group, share in enumerate((0.5, 1.0, 0.0)):
        truth = directions[group] * torch.tensor([1.0, 50.0])[:, None]
        cosine = (
            torch.nn.functional.normalize(truth.flatten(1), dim=1)
            @ torch.nn.functional.normalize(rows.flatten(1), dim=1).T
        )
        best = cosine.max(1)
        assert best.values.mean() > 0.9
        assert (norms[best.indices, 0] - share).abs().mean() < 0.12, (group, norms[best.indices, 0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "sae", "n_sites": 2}, "reads one site"),
        ({"kind": "clt"}, "reads several sites"),
        ({"kind": "clt", "n_sites": 2, "activation": "topk"}, "does not support topk"),
        ({"kind": "clt", "n_sites": 2, "activation": "batchtopk", "matryoshka": True}, "does not support matryoshka"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(MechstudyError, match=message):
        DictionaryConfig(**fields)


def test_rows_that_do_not_hold_the_sites_are_refused():
    cfg = DictionaryConfig(kind="crosscoder", n_sites=3, d_sae=8, k=2)
    with pytest.raises(MechstudyError, match="do not hold 3 sites"):
        train(cfg, TrainConfig(steps=1, batch_size=8), torch.randn(64, 10))
