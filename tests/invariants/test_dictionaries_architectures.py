"""Every architecture's hand-written step against its paper's formula and autograd, in float64."""

import math

import pytest
import torch
from torch import Tensor

from mechstudy.dictionaries import codes as codes_module
from mechstudy.dictionaries.architectures import architecture_of
from mechstudy.dictionaries.architectures.jumprelu import L0_STRENGTH, TANH_WEIGHT
from mechstudy.dictionaries.config import DictionaryConfig
from mechstudy.dictionaries.training.data_parallel import ALONE
from mechstudy.dictionaries.training.gradients import loss_and_gradients
from mechstudy.dictionaries.weights import Weights
from tests.support.objectives import BANDWIDTH, COEFFICIENT, PHI, Jump, Step, draw

N, D_IN, D_OUT, F, K = 40, 7, 5, 32, 4


def weights_for(cfg: DictionaryConfig) -> Weights:
    skip = draw(D_OUT, D_IN, seed=5) if cfg.kind == "skip_transcoder" else None
    extra = {
        "jumprelu": {"log_threshold": (draw(F, seed=6) / 4).exp().log() - 0.5},
        "gated": {"r_mag": draw(F, seed=6) / 3, "b_mag": draw(F, seed=7) / 3},
    }.get(cfg.activation, {})
    return Weights(
        draw(F, D_IN, seed=1) / 2, draw(F, seed=2) / 2, draw(F, D_OUT, seed=3), draw(D_OUT, seed=4), skip, extra
    )


def textbook(cfg: DictionaryConfig, w: Weights, x: Tensor, y: Tensor) -> Tensor:
    """The whole objective, dense."""
    pre = x @ w.enc.T + w.b_enc
    norms = torch.linalg.vector_norm(w.dec, dim=1)
    rest = w.b_dec + (0 if w.skip is None else x @ w.skip.T) - y
    phi = PHI.get(cfg.resolved_penalty())
    extra_loss = torch.zeros((), dtype=torch.float64)
    if cfg.activation == "relu":
        f = pre.relu()
        extra_loss = COEFFICIENT * phi(f * norms).sum() / N
    elif cfg.activation == "gated":
        u = x @ w.enc.T
        magnitude = (w.extra["r_mag"].exp() * u + w.extra["b_mag"]).relu()
        f = (pre > 0) * magnitude
        gate = pre.relu()
        frozen = gate @ w.dec.detach() + rest.detach()
        extra_loss = frozen.square().mean() + COEFFICIENT * phi(gate * norms).sum() / N
    elif cfg.activation == "jumprelu":
        threshold = w.extra["log_threshold"].exp()
        f = Jump.apply(pre, threshold)
        l0 = Step.apply(pre, threshold, torch.ones_like(pre)).sum() / N
        with_tanh = cfg.resolved_penalty() == "tanh"
        extra_loss = L0_STRENGTH * (1 if with_tanh else COEFFICIENT) * (l0 / cfg.k - 1) ** 2
        if with_tanh:
            relief = min(1.0, float(l0.detach()) / cfg.k) ** 8  # a constant: it steers, and is not a loss
            scale = TANH_WEIGHT * COEFFICIENT * relief / N
            at_jump = phi(threshold * norms).detach().expand_as(pre)
            smooth = phi(f.detach() * norms + (pre - pre.detach()) * norms.detach() * (pre > threshold))
            jump = Step.apply(pre, threshold, at_jump).sum()
            extra_loss = extra_loss + scale * ((smooth * (pre > threshold)).sum() + jump - jump.detach())
    else:
        bound = pre.topk(K, 1).values[:, -1:] if cfg.activation == "topk" else pre.flatten().topk(N * K).values[-1]
        f = torch.where(pre >= bound, pre.relu(), torch.zeros_like(pre))
    losses = [(f[:, :m] @ w.dec[:m] + rest).square().mean() for m in cfg.prefixes(F) or (F,)]
    return sum(losses) / len(losses) + extra_loss


CASES = [
    *({"activation": a, "penalty": p} for a in ("relu", "gated") for p in ("l1", "sqrt", "tanh")),
    {"activation": "jumprelu"},
    {"activation": "jumprelu", "penalty": "tanh"},
    {"activation": "jumprelu", "penalty": "tanh", "k": F // 2},  # of which fewer are active: see below
    *({"activation": a, "matryoshka": (0.125, 0.5, 1.0)} for a in ("topk", "batchtopk", "jumprelu")),
]


@pytest.mark.parametrize("held", ["sparse", "dense"])
@pytest.mark.parametrize("kind", ["transcoder", "skip_transcoder"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v) for v in c.values()))
def test_hand_written_gradients_equal_autograd_of_the_papers_formula(case, kind, held, monkeypatch):
    monkeypatch.setattr(codes_module, "DENSE_FROM", {"sparse": math.inf, "dense": -1.0}[held])
    cfg = DictionaryConfig(kind=kind, d_sae=F, bandwidth=BANDWIDTH, **{"k": K, **case})
    x, y, w = draw(N, D_IN, seed=8), draw(N, D_OUT, seed=9), weights_for(cfg)
    found = loss_and_gradients(
        w, x, y, architecture_of(cfg), dense_dtype=torch.float64, prefixes=cfg.prefixes(F), coefficient=COEFFICIENT
    )
    for _, tensor in w.named():
        tensor.requires_grad_()
    textbook(cfg, w, x, y).backward()
    for (name, gradient), (_, tensor) in zip(found.gradients.named(), w.named(), strict=True):
        assert tensor.grad is not None, name
        torch.testing.assert_close(gradient, tensor.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_the_cases_lie_on_both_sides_of_the_target_l0():
    w = weights_for(DictionaryConfig(kind="sae", d_sae=F, activation="jumprelu"))
    pre = draw(N, D_IN, seed=8) @ w.enc.T + w.b_enc
    assert K < float((pre > w.extra["log_threshold"].exp()).sum()) / N < F // 2


@pytest.mark.parametrize("activation", ["relu", "gated", "jumprelu"])
def test_at_inference_each_is_the_jumprelu_that_gives_the_same_codes(activation):
    cfg = DictionaryConfig(kind="transcoder", d_sae=F, k=K, activation=activation)
    x, w = draw(200, D_IN, seed=8), weights_for(cfg)
    architecture = architecture_of(cfg)
    codes = architecture.encode(x @ w.enc.T + w.b_enc, w, None, torch.float64, ALONE).codes.dense()
    folded, threshold = architecture.at_inference(w, None)
    pre = x @ folded.enc.T + folded.b_enc
    torch.testing.assert_close(codes, pre * ((pre > threshold) & (pre > 0)))
    assert 0 < (codes > 0).double().mean() < 1


@pytest.mark.parametrize("activation", ["relu", "gated", "jumprelu"])
def test_at_the_start_about_k_features_are_active(activation):
    cfg = DictionaryConfig(kind="sae", d_sae=256, k=8, activation=activation)
    u = draw(500, 256, seed=1)
    architecture = architecture_of(cfg)
    b_enc, extra = architecture.start(u)
    w = Weights(torch.eye(256, dtype=torch.float64), b_enc, torch.eye(256, dtype=torch.float64), b_enc, None, extra)
    l0 = (architecture.encode(u + b_enc, w, None, torch.float64, ALONE).codes.dense() > 0).sum(1).double().mean()
    assert 7.9 <= l0 <= 8.1


@pytest.mark.parametrize("dense_from", [math.inf, -1.0])
def test_parts_of_split_codes_put_together_are_the_whole(dense_from, monkeypatch):
    monkeypatch.setattr(codes_module, "DENSE_FROM", dense_from)
    pre = draw(N, F, seed=8)
    codes = codes_module.codes_between(pre, torch.ones(F, dtype=pre.dtype), dense_dtype=pre.dtype)
    parts = codes.split((3, 10, F))
    assert [part.n_features for part, _ in parts] == [3, 7, F - 10]
    torch.testing.assert_close(torch.cat([part.dense() for part, _ in parts], 1), pre * (pre > 1.0))
    put = torch.full_like(codes.values, -1.0)
    for part, where in parts:
        put[where] = part.values
    torch.testing.assert_close(put, codes.values)


@pytest.mark.parametrize("start", [0.2, 5.0])
def test_steering_brings_l0_to_the_target_from_both_sides_and_stays(start):
    cfg = DictionaryConfig(kind="transcoder", d_sae=256, k=8, activation="jumprelu")
    architecture, pre = architecture_of(cfg), draw(4_000, 256, seed=1)
    w = Weights(*(torch.eye(1, dtype=torch.float64) for _ in range(4)), None, architecture.start(pre)[1])
    w.extra["log_threshold"] += math.log(start)
    found = []
    for _ in range(100):
        found.append(float((pre > w.extra["log_threshold"].exp()).sum()) / len(pre))
        architecture.after_step(w, found[-1])
    assert not 4 < found[0] < 16 and all(7.9 < l0 < 8.1 for l0 in found[-10:])
