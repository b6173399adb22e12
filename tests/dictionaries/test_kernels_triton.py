"""The CUDA kernels against plain formulas, in Triton's interpreter or on a CUDA device.

The interpreter shows what the kernels compute, and `test_kernels_compile` that they are kernels: the compiler refuses
what the interpreter lets pass. With Triton but without a GPU this file runs in a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from mechstudy.dictionaries.kernels import cuda
from tests.support.processes import python

TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = TRITON and os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

RUN = cuda.available()  # else the classes below are not collected: the interpreter gets a process of its own
on_device = [] if INTERPRETED else [pytest.mark.cuda]
outside = pytest.mark.skipif(
    not TRITON or INTERPRETED,
    reason="in the interpreter" if INTERPRETED else "Triton is not installed: no CUDA kernels",
)

WIDTHS = [7, 576, 577]
TABLES = [torch.float32, torch.bfloat16]
NAN = float("nan")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def ragged(lengths: list[int], n_features: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(offsets, rows, features, values) of rows with so many entries."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    features = torch.randint(n_features, rows.shape, generator=torch.Generator().manual_seed(seed))
    return offsets.to(DEVICE), rows.to(DEVICE), features.to(DEVICE), randn(len(rows), seed=seed + 1)


def sums(offsets: Tensor, features: Tensor, entries: Tensor, table_FD: Tensor) -> Tensor:
    """What `sum_rows` must give, float64."""
    parts = [slice(*ends) for ends in pairwise(offsets.tolist())]
    table = table_FD.double()
    return torch.stack([(entries[p].double()[:, None] * table[features[p]]).sum(0) for p in parts])


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    """Equal to float32 rounding, relative to the largest number."""
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() <= tolerance * (1 + expected.abs().max())


def holds_in_bfloat16(stored: Tensor, exact: Tensor) -> None:
    """Rounded to nearest; the interpreter cuts."""
    if INTERPRETED:
        torch.testing.assert_close(stored.float(), exact.float(), rtol=2.0**-7, atol=0.0)
    else:
        assert torch.equal(stored, exact.float().bfloat16())


# ------------------------------------------------------------------------------- in a process of its own


@pytest.mark.slow
@pytest.mark.process
@outside
def test_the_kernels_hold_in_the_interpreter():
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", __file__, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-8000:]
    assert " passed" in done.stdout


# ------------------------------------------------------------------------------------------------ sums


class TestSums:
    __test__ = RUN
    pytestmark = on_device

    @pytest.mark.parametrize("dtype", TABLES)
    @pytest.mark.parametrize("width", WIDTHS)
    def test_each_row_is_the_sum_of_its_entries(self, width: int, dtype: torch.dtype):
        offsets, _, features, values = ragged([3, 0, 1, 40, 17, 0], 50)
        table, base = randn(50, width, dtype=dtype), randn(6, width, seed=5)
        close(cuda.sum_rows(offsets, features, values, table), sums(offsets, features, values, table))
        close(
            cuda.sum_rows(offsets, features, values, table, base, longest=40),
            sums(offsets, features, values, table) + base,
        )

    @pytest.mark.parametrize(
        "lengths",
        [[256], [257], [1000], [0, 700, 0, 3, 0], [5, 300, 256, 257, 1, 600], [256, 512, 300], [100, 400, 400, 2]],
    )
    def test_rows_longer_than_a_chunk_wherever_they_begin(self, lengths: list[int]):
        offsets, _, features, values = ragged(lengths, 30)
        table = randn(30, 7)
        close(cuda.sum_rows(offsets, features, values, table), sums(offsets, features, values, table))

    def test_a_gradient_with_one_feature_in_every_row(self):
        """Entries sorted by feature: feature 2 has 900 of 1,000, most have none."""
        lengths = [0] * 40
        lengths[2], lengths[17], lengths[39] = 900, 60, 40
        offsets, _, rows, entries = ragged(lengths, 900)
        x = randn(900, 20)
        close(cuda.sum_rows(offsets, rows, entries, x), sums(offsets, rows, entries, x))

    def test_the_same_input_gives_the_same_bits(self):
        offsets, _, features, values = ragged([700, 3, 300], 30)
        table = randn(30, 33)
        again = [cuda.sum_rows(offsets, features, values, table) for _ in range(3)]
        assert torch.equal(again[0], again[1]) and torch.equal(again[0], again[2])

    def test_no_entries_leave_the_base(self):
        base = randn(3, 7)
        offsets, none = torch.zeros(4, dtype=torch.int64, device=DEVICE), torch.empty(0, device=DEVICE)
        assert torch.equal(cuda.sum_rows(offsets, none.long(), none, randn(5, 7), base), base)
        assert cuda.row_products(offsets, none.long(), none.long(), base, randn(5, 7)).shape == (0,)
        error, products = cuda.reconstruct(offsets, none.long(), none, randn(5, 7), base)
        assert torch.equal(error, base) and products.shape == (0,)

    def test_the_result_has_the_base_s_dtype(self):
        offsets, _, features, values = ragged([2, 3], 9)
        table, base = randn(9, 7), randn(2, 7, dtype=torch.bfloat16)
        found = cuda.sum_rows(offsets, features, values, table, base)
        assert found.dtype == torch.bfloat16
        holds_in_bfloat16(found, sums(offsets, features, values, table) + base.double())

    def test_nan_stays_in_its_row(self):
        offsets, rows, features, values = ragged([2, 0, 300, 3], 30)
        values[4] = NAN
        table, base = randn(30, 7), randn(4, 7)
        for found in (
            cuda.sum_rows(offsets, features, values, table, base),
            cuda.reconstruct(offsets, features, values, table, base)[0],
        ):
            assert found.isnan().all(1).tolist() == [False, False, True, False]
        products = cuda.reconstruct(offsets, features, values, table, base)[1]
        assert torch.equal(products.isnan(), rows == 2)

    @pytest.mark.parametrize("dtype", TABLES)
    @pytest.mark.parametrize("width", WIDTHS)
    def test_products_are_dot_products(self, width: int, dtype: torch.dtype):
        offsets, rows, features, _ = ragged([3, 0, 1, 40], 50)
        a, table = randn(4, width), randn(50, width, dtype=dtype)
        expected = (a.double()[rows] * table.double()[features]).sum(1)
        close(cuda.row_products(offsets, rows, features, a, table), expected)

    @pytest.mark.parametrize("longest", [None, 20, 150])
    @pytest.mark.parametrize("dtype", TABLES)
    @pytest.mark.parametrize("width", WIDTHS)
    def test_reconstruction_and_products_in_rows_short_and_long(
        self, width: int, dtype: torch.dtype, longest: int | None
    ):
        """Rows of 17 and 150 are longer than what passes through registers at once, except where `longest` says so."""
        offsets, rows, features, values = ragged([3, 0, 1, 150, 17], 50)
        table, base = randn(50, width, dtype=dtype), randn(5, width, seed=5)
        error, products = cuda.reconstruct(offsets, features, values, table, base, longest=longest)
        expected = sums(offsets, features, values, table) + base
        close(error, expected)
        close(products, (expected[rows] * table.double()[features]).sum(1))

    def test_what_does_not_fit_is_refused(self):
        offsets, rows, features, values = ragged([2, 3], 9)
        table = randn(9, 7)
        with pytest.raises(ValueError, match="float64"):
            cuda.sum_rows(offsets, features, values, table.double())
        with pytest.raises(ValueError, match="strides"):
            cuda.sum_rows(offsets, features, values, randn(7, 9).T)
        with pytest.raises(ValueError, match="5 features but"):
            cuda.sum_rows(offsets, features, values[1:], table)
        with pytest.raises(ValueError, match="base is"):
            cuda.sum_rows(offsets, features, values, table, randn(2, 6))
        with pytest.raises(ValueError, match="wide"):
            cuda.row_products(offsets, rows, features, randn(2, 6), table)


# ------------------------------------------------------------------------------------------- selection


class TestSelection:
    __test__ = RUN
    pytestmark = on_device

    @pytest.mark.parametrize("dtype", TABLES)
    @pytest.mark.parametrize("n_features", [7, 100, 1024, 2500])
    def test_above_finds_what_a_mask_finds(self, n_features: int, dtype: torch.dtype):
        pre = randn(5, n_features, dtype=dtype)
        pre[3] = -1.0
        for low in (0.5, 0, randn(n_features, seed=2).abs(), 100.0, float("-inf")):
            mask = pre.float() > low
            offsets, features, values = cuda.above(pre, low)
            assert torch.equal(offsets.diff(), mask.sum(1))
            assert torch.equal(features, mask.nonzero()[:, 1]) and torch.equal(values, pre[mask])

    def test_above_is_strict_and_lets_nan_through(self):
        pre = torch.tensor([[0.5, NAN, 0.25], [-NAN, 0.75, -1.0]], device=DEVICE)
        offsets, features, _ = cuda.above(pre, 0.5)
        assert offsets.tolist() == [0, 1, 3] and features.tolist() == [1, 0, 1]

    @pytest.mark.parametrize("guess", [None, 0.0, NAN, 1e-3, 1.0, 2.0, 3.0, 1e6])
    @pytest.mark.parametrize("dtype", TABLES)
    def test_batch_top_k_is_exact_whatever_the_guess(self, dtype: torch.dtype, guess: float | None):
        pre = randn(6, 300, dtype=dtype)
        pre[2] = -pre[2].abs()
        offsets, features, values, minimum = cuda.batch_top_k(pre, 50, guess)
        best = pre.reshape(-1).float().topk(50)[0]
        assert torch.equal(values.float().sort(descending=True)[0], best) and minimum == best[-1]
        rows = torch.arange(6, device=DEVICE).repeat_interleave(offsets.diff())
        assert torch.equal(pre[rows, features], values)
        assert int(offsets[-1]) == 50 and int(offsets.diff()[2]) == 0
        assert ((rows * 300 + features).diff() > 0).all()

    def test_batch_top_k_takes_the_earliest_of_equal_entries(self):
        pre = torch.ones(4, 30, device=DEVICE)
        pre[3, 7] = 2.0
        for guess in (None, 1.0, 5.0):
            offsets, features, _, minimum = cuda.batch_top_k(pre, 36, guess)
            assert offsets.tolist() == [0, 30, 35, 35, 36] and minimum == 1.0
            assert features.tolist() == [*range(30), *range(5), 7]

    def test_batch_top_k_of_fewer_positive_entries(self):
        pre = -torch.ones(3, 20, device=DEVICE)
        assert cuda.batch_top_k(pre, 5, 1.0)[3] == 0.0 and len(cuda.batch_top_k(pre, 5, None)[1]) == 0
        pre[1, 4] = 0.5
        offsets, features, values, minimum = cuda.batch_top_k(pre, 5, 1.0)
        assert (offsets.tolist(), features.tolist(), values.tolist(), minimum) == ([0, 0, 1, 1], [4], [0.5], 0.5)

    def test_batch_top_k_keeps_nan(self):
        pre = randn(3, 20)
        pre[1, 4] = NAN
        _, _, values, minimum = cuda.batch_top_k(pre, 5, None)
        assert values.isnan().sum() == 1 and minimum != minimum

    @staticmethod
    def earliest(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest by (value, then lowest feature): features ascending, and values cut at zero."""
        features = pre.float().sort(dim=1, descending=True, stable=True)[1][:, :k].sort(1)[0]
        return features.reshape(-1), pre.gather(1, features).clamp_min(0.0).reshape(-1)

    @pytest.mark.parametrize("k", [1, 5, 32, 50])
    @pytest.mark.parametrize("n_features", [50, 1000, 1024, 4608])
    @pytest.mark.parametrize("dtype", TABLES)
    def test_top_k_is_exact_and_breaks_ties_by_feature(self, dtype: torch.dtype, n_features: int, k: int):
        """Rows: normal numbers (with bfloat16's own ties), few positive, none, integers, one group of high features."""
        pre = randn(5, n_features, dtype=dtype)
        pre[1] -= 2.5
        pre[2] = -pre[2].abs() - 0.125
        pre[3] = pre[3].round()
        pre[4, ::512] += 10.0
        offsets, features, values = cuda.top_k(pre, k)
        expected = self.earliest(pre, k)
        assert offsets.tolist() == list(range(0, 5 * k + 1, k))
        assert torch.equal(features, expected[0]) and torch.equal(values, expected[1])

    @pytest.mark.parametrize("value", [1.0, 0.0, -1.0, float("inf"), -float("inf"), 2.0**-140])
    def test_top_k_of_a_row_of_one_value(self, value: float):
        """More ties than there is room for candidates: the whole row is searched."""
        pre = torch.full((2, 1000), value, device=DEVICE)
        pre[1, 900] = value + 1.0
        offsets, features, values = cuda.top_k(pre, 3)
        last = [0, 1, 900] if value + 1.0 > value else [0, 1, 2]
        assert offsets.tolist() == [0, 3, 6] and features.tolist() == [0, 1, 2, *last]
        assert torch.equal(values, pre.gather(1, features.view(2, 3)).clamp_min(0.0).reshape(-1))

    def test_top_k_takes_nan_first_and_shows_it(self):
        pre = randn(2, 700)
        pre[0, 600] = -torch.tensor(NAN)
        _, features, values = cuda.top_k(pre, 2)
        assert 600 in features[:2].tolist() and values.isnan().sum() == 1
        pre[1] = NAN
        _, features, values = cuda.top_k(pre, 2)
        assert features[2:].tolist() == [0, 1] and values[2:].isnan().all()

    def test_top_k_of_many_leaves_it_to_torch(self):
        pre = randn(2, 2000)
        offsets, features, values = cuda.top_k(pre, 1100)
        expected = self.earliest(pre, 1100)
        assert offsets.tolist() == [0, 1100, 2200]
        assert torch.equal(features, expected[0]) and torch.equal(values, expected[1])

    @pytest.mark.parametrize("k", [0, 8])
    def test_top_k_of_more_than_there_are_is_refused(self, k: int):
        with pytest.raises(ValueError, match="of 7 features"):
            cuda.top_k(randn(2, 7), k)


# ------------------------------------------------------------------------------------------------ Adam


class TestAdam:
    __test__ = RUN
    pytestmark = on_device

    @pytest.mark.parametrize("width", [7, 576, 1100])
    def test_three_steps_are_torch_s(self, width: int):
        weight = randn(5, width)
        ours, theirs = weight.clone(), torch.nn.Parameter(weight.clone())
        m, v = torch.zeros_like(ours), torch.zeros_like(ours)
        optimizer = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.999), eps=1e-8, foreach=False)
        for step in (1, 2, 3):
            grad = randn(5, width, seed=step)
            theirs.grad = grad * 0.5
            optimizer.step()
            clip = 0.5 if step == 2 else torch.tensor(0.5, device=DEVICE)
            cuda.adam(
                ours, grad, m, v, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, step=step, clip=clip, unit_rows=False
            )
        close(ours, theirs.detach().double(), 1e-6)
        state = optimizer.state[theirs]
        close(m, state["exp_avg"].double(), 1e-6)
        torch.testing.assert_close(v, state["exp_avg_sq"], rtol=3e-6, atol=0.0)

    @pytest.mark.parametrize("width", [7, 576, 1100])
    def test_unit_rows_without_the_parallel_part_and_a_copy_in_bfloat16(self, width: int):
        weight = torch.nn.functional.normalize(randn(5, width), dim=1)
        grad = randn(5, width, seed=1)
        m, v, half = torch.zeros_like(weight), torch.zeros_like(weight), torch.empty_like(weight, dtype=torch.bfloat16)
        w, g = weight.double(), grad.double()
        g = g - (g * w).sum(1, keepdim=True) * w
        close(cuda.row_squares(grad, weight), g.square().sum(1))
        close(cuda.row_squares(grad), grad.double().square().sum(1))
        g *= 0.25
        # The first step: m / sqrt(v) is g / |g| after bias correction. A large eps keeps that smooth.
        moved = w - 0.1 * g / (g.abs() + 0.01)
        expected = moved / moved.norm(dim=1, keepdim=True)
        cuda.adam(
            weight, grad, m, v, lr=0.1, beta1=0.9, beta2=0.999, eps=0.01, step=1, clip=0.25, unit_rows=True,
            parallel_free=True, half=half,
        )  # fmt: skip
        close(weight, expected, 3e-6)
        close(m, 0.1 * g)
        holds_in_bfloat16(half, weight)

    def test_a_copy_without_unit_rows_is_the_new_weight(self):
        weight, m, v = randn(3, 7), torch.zeros(3, 7, device=DEVICE), torch.zeros(3, 7, device=DEVICE)
        half = torch.empty_like(weight, dtype=torch.bfloat16)
        cuda.adam(
            weight, randn(3, 7, seed=1), m, v, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8, step=1, clip=1.0,
            unit_rows=False, half=half,
        )  # fmt: skip
        holds_in_bfloat16(half, weight)

    def test_nan_reaches_the_weight(self):
        weight, grad = randn(3, 7), randn(3, 7, seed=1)
        grad[1, 2] = NAN
        cuda.adam(
            weight, grad, torch.zeros_like(grad), torch.zeros_like(grad), lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8,
            step=1, clip=1.0, unit_rows=True,
        )  # fmt: skip
        assert weight.isnan().all(1).tolist() == [False, True, False]

    def test_what_does_not_fit_is_refused(self):
        w = randn(3, 7)
        options: dict[str, Any] = {
            "lr": 0.1,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "clip": 1.0,
            "unit_rows": False,
        }
        with pytest.raises(ValueError, match="step 0"):
            cuda.adam(w, w, w, w, step=0, **options)
        with pytest.raises(ValueError, match="matrices"):
            cuda.adam(w, w[:2], w, w, step=1, **options)
