"""The CUDA side of the kernels' common face, in Triton's interpreter or on a device, against the plain references."""

import importlib.util
import math
import os

import pytest
import torch

from mechstudy.dictionaries.kernels import cuda, gpu, reference
from tests.support.kernel_inputs import draw, some_codes
from tests.support.processes import python

TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = TRITON and os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
runs = pytest.mark.skipif(not cuda.available(), reason="no CUDA device (or TRITON_INTERPRET=1)")


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(not TRITON or INTERPRETED, reason="Triton is not installed: no CUDA kernels")
def test_the_common_face_holds_in_the_interpreter():
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", __file__, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


@runs
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_kernels_equal_the_references(dtype):
    pre = draw(20, 150, seed=1, dtype=dtype).to(DEVICE)
    low, high = (draw(150, seed=2) / 2).to(DEVICE), torch.full((150,), math.inf, device=DEVICE)
    for top in (high, low + 0.7):
        found, expected = gpu.between(pre, low, top, math.inf), reference.between(pre, low, top, math.inf)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert gpu.between(pre, low, high, 3) is None
    for a, b in ((gpu.batch_top_k(pre, 90, 0.5), reference.batch_top_k(pre, 90, None)),):
        torch.testing.assert_close(a[2].sort()[0], b[2].sort()[0], rtol=0, atol=0)
        assert a[0][-1] == 90
    offsets, features, values = gpu.positive_top_k(pre, 5)
    torch.testing.assert_close(values.view(20, 5).sort(1)[0], pre.topk(5).values.relu().sort(1)[0], rtol=0, atol=0)

    _, offsets, features, values = (t.to(DEVICE) for t in some_codes(20, 50, 0.2, seed=3, dtype=torch.float32))
    table, rows = draw(50, 33, seed=4, dtype=dtype).to(DEVICE), draw(20, 33, seed=5, dtype=dtype).to(DEVICE)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(
        gpu.sum_rows(offsets, features, values, table), reference.sum_rows(offsets, features, values, table), **close
    )
    for name, given in (("row_products", rows), ("reconstruct", rows.float())):
        if name == "row_products":
            pair = [k.row_products(offsets, features, given, table) for k in (gpu, reference)]
            torch.testing.assert_close(*pair, **close)
        else:
            for a, b in zip(
                *(k.reconstruct(offsets, features, values, table, given) for k in (gpu, reference)), strict=True
            ):
                torch.testing.assert_close(a, b, **close)
    order, numbers, ends = gpu.by_feature(offsets, features, 50)
    unit = torch.nn.functional.normalize(draw(50, 33, seed=6), dim=1).to(DEVICE)
    for directions in (None, unit):
        outs = [torch.empty(50, 33, device=DEVICE) for _ in range(2)]
        squares = [
            k.gradient_rows(ends, numbers, values[order], rows, directions, out)
            for k, out in zip((gpu, reference), outs, strict=True)
        ]
        torch.testing.assert_close(*outs, **close)
        torch.testing.assert_close(*squares, **close)
    states = [
        [draw(50, 33, seed=7).to(DEVICE), *(torch.zeros(50, 33, device=DEVICE) for _ in range(2))] for _ in range(2)
    ]
    for step in (1, 2):
        for k, state in zip((gpu, reference), states, strict=True):
            k.adam(state[0], outs[0], *state[1:], lr=0.01, step=step, factor=0.5, unit=True, half=None)
    for a, b in zip(*states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
