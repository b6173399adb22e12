"""The CPU kernels against their plain PyTorch references, on shapes and numbers that try to break them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechstudy.dictionaries.kernels import reference
from tests.support.kernel_inputs import draw, some_codes

cpu = pytest.importorskip("mechstudy.dictionaries.kernels.cpu", reason="Numba does not know this Python yet")
DTYPES = [torch.bfloat16, torch.float32, torch.float64]
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 10_000)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9), f=st.integers(1, 150), k=st.integers(1, 40), shift=st.floats(-3, 1), seed=seeds, dtype=dtypes
)
def test_top_k_are_the_k_largest_even_where_they_are_negative(n, f, k, shift, seed, dtype):
    k = min(k, f)
    pre = (draw(n, f, seed=seed, dtype=torch.float64) + shift).to(dtype)
    values, indices = cpu.top_k(pre, k)
    torch.testing.assert_close(values.sort(1)[0], reference.top_k(pre, k)[0].sort(1)[0], rtol=0, atol=0)
    torch.testing.assert_close(pre.gather(1, indices), values, rtol=0, atol=0)
    assert all(len(set(row.tolist())) == k for row in indices)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_top_k_of_equal_numbers_takes_k_different_ones(value, dtype):
    indices = cpu.top_k(torch.full((3, 70), value, dtype=dtype), 5)[1]
    assert all(len(set(row.tolist())) == 5 for row in indices)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 12), f=st.integers(1, 90), wanted=st.integers(1, 400), seed=seeds, dtype=dtypes,
    guess=st.one_of(st.none(), st.floats(0, 4)), shift=st.floats(-2, 1),
)  # fmt: skip
def test_batch_top_k_are_the_largest_positive_ones_whatever_the_guess(n, f, wanted, seed, dtype, guess, shift):
    pre = (draw(n, f, seed=seed, dtype=torch.float64) + shift).to(dtype)
    found = cpu.batch_top_k(pre, wanted, guess)
    expected = reference.batch_top_k(pre, wanted, None)
    torch.testing.assert_close(found[2].sort()[0], expected[2].sort()[0], rtol=0, atol=0)
    rows = reference.row_numbers(found[0], len(found[1]))
    torch.testing.assert_close(pre[rows, found[1]], found[2], rtol=0, atol=0)
    assert len(set((rows * f + found[1]).tolist())) == len(rows)


def test_batch_top_k_cuts_ties_to_the_number_wanted():
    offsets, _, values = cpu.batch_top_k(torch.ones(4, 40, dtype=torch.bfloat16), 13, 1.0)
    assert len(values) == 13 == offsets[-1]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 9), f=st.integers(1, 80), seed=seeds, dtype=dtypes, open_end=st.booleans())
def test_between_finds_what_the_mask_finds(n, f, seed, dtype, open_end):
    pre = draw(n, f, seed=seed, dtype=dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    low = draw(f, seed=seed + 1, dtype=exact) / 2
    high = torch.full_like(low, math.inf) if open_end else low + 0.7
    found, expected = cpu.between(pre, low, high, math.inf), reference.between(pre, low, high, math.inf)
    assert found is not None and expected is not None
    torch.testing.assert_close(found[0], expected[0])
    order = (reference.row_numbers(found[0], len(found[1])) * f + found[1]).argsort()
    torch.testing.assert_close(found[1][order], expected[1])
    torch.testing.assert_close(found[2][order], expected[2], rtol=0, atol=0)
    assert cpu.between(pre, low, high, len(found[1]) - 0.5) is None


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "f", "d", "share"), [(30, 50, 7, 0.1), (64, 33, 65, 0.3), (5, 9, 1, 0.5), (40, 300, 16, 0.01)]
)
def test_sums_and_products_equal_the_dense_ones(n, f, d, share, dtype):
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    dense, offsets, features, values = some_codes(n, f, share, seed=n, dtype=exact)
    table, base, rows = (draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(f, d), (n, d), (n, d)]))
    base, wide = base.to(exact), table.to(exact)
    close = {"rtol": 2e-5, "atol": 2e-5} if exact == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    at = reference.row_numbers(offsets, len(features)), features

    torch.testing.assert_close(cpu.sum_rows(offsets, features, values, table), dense @ wide, **close)
    torch.testing.assert_close(cpu.row_products(offsets, features, rows, table), (rows.to(exact) @ wide.T)[at], **close)
    error, products = cpu.reconstruct(offsets, features, values, table, base)
    torch.testing.assert_close(error, base + dense @ wide, **close)
    torch.testing.assert_close(products, (error @ wide.T)[at], **close)

    order, numbers, ends = cpu.by_feature(offsets, features, f)
    expected = reference.by_feature(offsets, features, f)
    assert all(torch.equal(a, b) for a, b in zip((order, numbers, ends), expected, strict=True))
    torch.testing.assert_close(cpu.sum_entries(ends, values[order]), dense.sum(0), **close)
    for unit in (None, torch.nn.functional.normalize(wide, dim=1)):
        out, plain = torch.full((f, d), math.nan, dtype=exact), torch.empty(f, d, dtype=exact)
        squares = cpu.gradient_rows(ends, numbers, values[order], rows, unit, out)
        reference.gradient_rows(ends, numbers, values[order], rows, unit, plain)
        torch.testing.assert_close(out, plain, **close)
        torch.testing.assert_close(squares, out.square().sum(1), **close)


@pytest.mark.parametrize("unit", [False, True])
def test_adam_equals_its_reference_and_torchs(unit):
    weight = draw(20, 37, seed=1)
    ours, plain = (
        [weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight), weight.bfloat16()] for _ in range(2)
    )
    torchs = weight.clone().requires_grad_()
    optimizer = torch.optim.Adam([torchs], lr=0.01)
    for step in range(1, 6):
        gradient = draw(20, 37, seed=step)
        gradient[step::3] = 0.0
        for kernels, (w, mean, square, half) in ((cpu, ours), (reference, plain)):
            kernels.adam(
                w,
                gradient,
                mean,
                square,
                lr=0.01,
                step=step,
                factor=0.5,
                unit=unit,
                half=half,
                squares=gradient.square().sum(1),
            )
        torchs.grad = 0.5 * gradient
        optimizer.step()
    for a, b in zip(ours[:3], plain[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours[3], ours[0].bfloat16()), "the narrow copy is rounded as torch rounds"
    if not unit:
        torch.testing.assert_close(ours[0], torchs.detach(), rtol=1e-6, atol=1e-7)
    else:
        torch.testing.assert_close(ours[0].norm(dim=1), torch.ones(20))


def test_infinity_and_nan_reach_the_sums():
    _, offsets, features, values = some_codes(8, 12, 0.4, seed=3, dtype=torch.float32)
    values[0] = math.nan
    values[-1] = math.inf
    total = cpu.sum_rows(offsets, features, values, torch.ones(12, 4))
    rows = reference.row_numbers(offsets, len(features))
    assert total[rows[0]].isnan().all() and total[rows[-1]].isinf().all()


def test_the_number_of_threads_changes_no_bit():
    _, offsets, features, values = some_codes(500, 64, 0.1, seed=3, dtype=torch.float32)
    table, before = draw(64, 40, seed=1), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(cpu.reconstruct(offsets, features, values, table, draw(500, 40, seed=2)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
