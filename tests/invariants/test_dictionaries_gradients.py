"""The hand-written step against plain dense formulas and autograd, in float64."""

import pytest
import torch

from mechstudy.dictionaries.architectures.batchtopk import BatchTopK
from mechstudy.dictionaries.architectures.topk import TopK
from mechstudy.dictionaries.codes import SparseCodes, batch_topk_codes, topk_codes
from mechstudy.dictionaries.kernels import top_k
from mechstudy.dictionaries.kernels.reference import normalise_rows, remove_parallel
from mechstudy.dictionaries.training.gradients import loss_and_gradients
from mechstudy.dictionaries.weights import Weights

N, D_IN, D_OUT, F, K = 40, 7, 5, 32, 4


def some_weights(skip: bool, seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return Weights(draw(F, D_IN), draw(F) / 2, draw(F, D_OUT), draw(D_OUT), draw(D_OUT, D_IN) if skip else None)


def some_rows(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D_IN, generator=generator, dtype=torch.float64)
    return x, torch.randn(N, D_OUT, generator=generator, dtype=torch.float64)


def select(activation: str):
    return TopK(K) if activation == "topk" else BatchTopK(K)


def dense_codes(pre: torch.Tensor, activation: str) -> torch.Tensor:
    per_row, pooled = pre.topk(K, dim=1).values[:, -1:], pre.flatten().topk(N * K).values[-1]
    bound = per_row if activation == "topk" else pooled
    return torch.where(pre >= bound, pre.relu(), torch.zeros_like(pre))


def dense_loss(w: Weights, x, y, activation: str, dead: torch.Tensor | None, aux_k: int, alpha: float):
    """The textbook formulas, nothing clever."""
    pre = x @ w.enc.T + w.b_enc
    y_hat = dense_codes(pre, activation) @ w.dec + w.b_dec
    if w.skip is not None:
        y_hat = y_hat + x @ w.skip.T
    loss = (y_hat - y).square().mean()
    if dead is None:
        return loss
    residual = (y - y_hat).detach()
    masked = torch.full_like(pre, -torch.inf)
    masked[:, dead] = pre[:, dead]
    values, places = masked.topk(min(aux_k, len(dead)), dim=1)
    cut = torch.where((pre > 0).any(0).expand_as(pre).gather(1, places), values.relu(), values)
    e_hat = torch.zeros_like(pre).scatter(1, places, cut) @ w.dec
    variance = (residual - residual.mean(0)).square().mean()
    return loss + alpha * (e_hat - residual).square().mean() / variance


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("aux_k", [None, 3, 100])
def test_hand_written_gradients_equal_autograd_of_the_dense_formula(activation, skip, aux_k):
    x, y = some_rows()
    w = some_weights(skip)
    dead = None if aux_k is None else torch.tensor([1, 4, 9, 30, 31])
    w.b_enc[4] = -50.0
    output = loss_and_gradients(
        w, x, y, select(activation), dense_dtype=torch.float64, dead=dead, aux_k=aux_k or 0, aux_alpha=0.3
    )
    for _, tensor in w.named():
        tensor.requires_grad_()
    loss = dense_loss(w, x, y, activation, dead, aux_k or 0, 0.3)
    loss.backward()
    total = output.loss if output.aux_loss is None else output.loss + 0.3 * output.aux_loss
    torch.testing.assert_close(total, loss.detach())
    for (name, gradient), (_, tensor) in zip(output.gradients.named(), w.named(), strict=True):
        torch.testing.assert_close(gradient, tensor.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_auxiliary_gradient_reaches_dead_features_that_are_negative():
    x, y = some_rows()
    w = some_weights(False)
    dead = torch.tensor([3, 17])
    w.b_enc[dead] = -50.0
    plain = loss_and_gradients(w, x, y, select("topk"), dense_dtype=torch.float64)
    assert plain.gradients.enc[dead].abs().sum() == 0
    output = loss_and_gradients(
        w, x, y, select("topk"), dense_dtype=torch.float64, dead=dead, aux_k=2, aux_alpha=1 / 32
    )
    assert (output.gradients.enc[dead].abs().sum(1) > 0).all()
    assert (output.gradients.b_enc[dead] != 0).all()
    assert (output.gradients.dec[dead].abs().sum(1) > 0).all()


def test_auxiliary_loss_is_one_if_dead_features_predict_nothing():
    x, y = some_rows()
    w = some_weights(False)
    dead = torch.tensor([3])
    w.dec[dead] = 0.0
    first = loss_and_gradients(w, x, y, select("topk"), dense_dtype=torch.float64)
    w.b_dec -= first.error_ND.mean(0)  # b_dec must not be counted in the prediction of the residual again
    output = loss_and_gradients(w, x, y, select("topk"), dense_dtype=torch.float64, dead=dead, aux_k=1, aux_alpha=1.0)
    torch.testing.assert_close(output.aux_loss, torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("shape,k", [((50, 64), 3), ((50, 2304), 32), ((9, 30), 30), ((4, 17), 2)])
def test_top_k_finds_the_largest(shape, k):
    pre = torch.randn(shape, generator=torch.Generator().manual_seed(k))
    values, indices = top_k(pre, k)
    torch.testing.assert_close(values.sort(1)[0], pre.topk(k, dim=1).values.sort(1)[0])
    torch.testing.assert_close(pre.gather(1, indices), values)
    assert all(len(set(row.tolist())) == k for row in indices)


def test_topk_codes_have_k_nonzeros_if_enough_are_positive():
    pre = torch.randn(100, F, generator=torch.Generator().manual_seed(0))
    pre[0] = -1.0
    nonzeros = (topk_codes(pre, K, torch.float32).dense() > 0).sum(1)
    assert nonzeros[0] == 0
    assert (nonzeros == (pre > 0).sum(1).clamp(max=K)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guess", [None, 0.5, 1.0, 50.0])
def test_batch_topk_keeps_the_n_times_k_largest_whatever_the_guess(dtype, guess):
    pre = torch.randn(N, 640, generator=torch.Generator().manual_seed(0)).to(dtype)
    codes, least = batch_topk_codes(pre, K, torch.float32, guess)
    best = pre.float().flatten().topk(N * K).values
    torch.testing.assert_close(codes.values.sort()[0], best.sort()[0])
    assert least == float(best.min())
    dense = codes.dense()
    assert (dense[dense > 0] == pre.float()[dense > 0]).all()


def test_batch_topk_keeps_no_negative_value():
    pre = -torch.ones(6, 10)
    pre[2, 3] = 1.0
    codes, least = batch_topk_codes(pre, 4, torch.float32, None)
    assert codes.values.tolist() == [1.0] and codes.features.tolist() == [3] and least == 1.0
    assert batch_topk_codes(-torch.ones(6, 10), 4, torch.float32, None)[1] == 0.0


def test_sparse_products_equal_dense_ones_with_ragged_rows():
    codes = SparseCodes(
        torch.tensor([0, 2, 2, 5]),
        torch.tensor([5, 1, 0, 1, 7]),
        torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0], dtype=torch.float64),
        9,
    )
    dense = codes.dense()
    assert dense.shape == (3, 9) and dense[2, 1] == 3.0 and dense[1].sum() == 0
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    table = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(codes.times(table), dense @ table)
    out = torch.empty(dense.shape[1], rows.shape[1], dtype=rows.dtype)
    codes.gradient_rows(codes.values, rows, out)
    torch.testing.assert_close(out, dense.T @ rows)
    entries = [(0, 5), (0, 1), (2, 0), (2, 1), (2, 7)]
    expected = torch.stack([rows[n] @ table[f] for n, f in entries])
    torch.testing.assert_close(codes.products(rows, table), expected)
    assert codes.fired().nonzero().flatten().tolist() == [0, 1, 5]


def test_removing_the_parallel_part_leaves_nothing_along_the_decoder_row():
    w = some_weights(False)
    normalise_rows(w.dec)
    gradient = torch.randn(F, D_OUT, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    remove_parallel(gradient, w.dec)
    assert (gradient * w.dec).sum(1).abs().max() < 1e-14
    assert gradient.abs().max() > 0.1
