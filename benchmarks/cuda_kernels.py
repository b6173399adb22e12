"""Each CUDA kernel against the plain PyTorch path, beside the encoder's dense product, on one GPU.

Before timing, each kernel's result is held to the plain one: the table shows how far they differ, relative to the
largest number. Times are medians with the L2 cache emptied before each run. "share" is the part of the memory
bandwidth (measured here, by a copy) at which the kernel would have to work to read and write each operand once; table
rows that a kernel reads again come from cache or cost extra.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mechstudy.dictionaries.kernels import cuda, reference

SHAPES = {"smollm2": (576, 4608, 32, 4096), "specification": (3584, 14336, 32, 4096)}  # d, F, k, batch
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Case:
    """ours() and plain() give what compares; n_bytes: each operand once."""

    name: str
    ours: Callable[[], Any]
    plain: Callable[[], Any]
    n_bytes: int


def n_bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def numbers(result: Any) -> list[Tensor]:
    """The floating-point tensors of a result, float64."""
    parts = result if isinstance(result, tuple) else (result,)
    return [p.double() for p in parts if isinstance(p, Tensor) and p.is_floating_point()]


def difference(case: Case) -> float:
    pairs = list(zip(numbers(case.ours()), numbers(case.plain()), strict=True))
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


def plain_top_k(pre: Tensor, k: int) -> Tensor:
    return torch.topk(pre, k, dim=1, sorted=False)[1].sort(1)[0]


def cases(shape: tuple[int, int, int, int], table_dtype: torch.dtype, device: str) -> Iterator[Case]:
    width, n_features, k, n_rows = shape
    torch.manual_seed(0)
    randn = partial(torch.randn, device=device)
    x, dec = randn(n_rows, width), torch.nn.functional.normalize(randn(n_features, width), dim=1)
    table, base = dec.to(table_dtype), randn(n_rows, width)
    x16, enc16 = x.bfloat16(), dec.bfloat16()
    bias = 0.5 * randn(n_features).bfloat16()  # some features fire often, most seldom
    pre = torch.addmm(bias, x16, enc16.T)
    yield Case(
        "encoder, bf16", lambda: torch.addmm(bias, x16, enc16.T), lambda: torch.addmm(bias, x16, enc16.T),
        n_bytes(x16, enc16, pre),
    )  # fmt: skip

    offsets, features, values = cuda.top_k(pre, k)
    # Ties may be broken otherwise: what compares is each row's sum.
    yield Case(
        "top_k", lambda: cuda.top_k(pre, k)[2].view(n_rows, k).float().sum(1),
        lambda: pre.gather(1, plain_top_k(pre, k)).relu().float().sum(1), n_bytes(pre, features, values),
    )  # fmt: skip
    bound = float(values[values > 0].min())
    yield Case(
        "above", lambda: cuda.above(pre, bound)[2], lambda: pre[pre > bound], n_bytes(pre, pre, features, values)
    )
    guess = cuda.batch_top_k(pre, n_rows * k, None)[3]
    yield Case(
        "batch_top_k", lambda: cuda.batch_top_k(pre, n_rows * k, guess)[2].float().sum(),
        lambda: reference.batch_top_k(pre, n_rows * k, guess)[2].float().sum(), n_bytes(pre, pre, features, values),
    )  # fmt: skip

    entries = values.float()
    rows = reference.row_numbers(offsets, len(features))
    order, rows_by_feature, ends = reference.by_feature(offsets, features, n_features)
    by_feature = entries[order]
    codes = n_bytes(features, entries)
    out = torch.empty(n_features, width, device=device)
    yield Case(
        "sum_rows: decode", lambda: cuda.sum_rows(offsets, features, entries, table, base, longest=k),
        lambda: reference.sum_rows(offsets, features, entries, table) + base, codes + n_bytes(table, base, base),
    )  # fmt: skip
    yield Case(
        "sum_rows: gradient", lambda: cuda.sum_rows(ends, rows_by_feature, by_feature, x),
        lambda: reference.sum_rows(ends, rows_by_feature, by_feature, x), codes + n_bytes(x, out),
    )  # fmt: skip
    yield Case(
        "row_products", lambda: cuda.row_products(offsets, rows, features, base, table),
        lambda: (base.to(table_dtype) @ table.T)[rows, features].float(), codes + n_bytes(rows, base, table),
    )  # fmt: skip
    yield Case(
        "reconstruct", lambda: cuda.reconstruct(offsets, features, entries, table, base, longest=k),
        lambda: reference.reconstruct(offsets, features, entries, table, base),
        codes + n_bytes(table, base, base, entries),
    )  # fmt: skip

    yield Case("row_squares", lambda: cuda.row_squares(base), lambda: base.square().sum(1), n_bytes(base))
    yield from adam_cases(dec, randn(n_features, width))


def adam_cases(dec: Tensor, grad: Tensor) -> Iterator[Case]:
    half = torch.empty_like(dec, dtype=torch.bfloat16)
    for unit in (False, True):
        ours, theirs = ([dec.clone(), torch.zeros_like(dec), torch.zeros_like(dec)] for _ in range(2))
        step = torch.zeros((), device=dec.device)

        def fused(unit: bool = unit, ours: list[Tensor] = ours) -> Tensor:
            weight, m, v = ours
            cuda.adam(
                weight, grad, m, v, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, step=1, clip=0.5, unit_rows=unit,
                parallel_free=unit, half=half,
            )  # fmt: skip
            return weight

        def plain(unit: bool = unit, theirs: list[Tensor] = theirs, step: Tensor = step) -> Tensor:
            weight, m, v = theirs
            step.zero_()
            g = grad.clone()
            if unit:
                reference.remove_parallel(g, weight)
            g.mul_(0.5)
            torch._fused_adam_(
                [weight], [g], [m], [v], [], [step.add_(1)], lr=1e-3, beta1=0.9, beta2=0.999, weight_decay=0.0,
                eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip
            if unit:
                reference.normalise_rows(weight)
            half.copy_(weight)
            return weight

        yield Case("adam, unit rows" if unit else "adam", fused, plain, n_bytes(*ours, *ours, grad, half))


def milliseconds(run: Callable[[], Any], flush: Tensor, repeats: int) -> float:
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all")
    parser.add_argument("--table", choices=DTYPES, action="append", help="dtype of the decoder table; default: both")
    parser.add_argument("--repeats", type=int, default=30)
    a = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("cuda_kernels: no CUDA device (torch.cuda.is_available() is false): nothing to time")
    if not cuda.available():
        sys.exit("cuda_kernels: the kernels need Triton and a GPU of compute capability 8.0 or later")
    flush = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
    source = torch.empty_like(flush)
    bandwidth = 2 * flush.numel() / milliseconds(lambda: flush.copy_(source), flush, a.repeats)  # bytes a ms
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: copies at {bandwidth / 1e9:.2f} TB/s")
    for shape in a.shape or SHAPES:
        for dtype in a.table or DTYPES:
            print(f"\n{shape}: d, F, k, batch = {SHAPES[shape]}, {dtype} table")
            print(
                f"  {'':<20} {'kernel ms':>10} {'PyTorch ms':>11} {'times':>6} {'TB/s':>6} {'share':>6} {'differs':>9}"
            )
            for case in cases(SHAPES[shape], DTYPES[dtype], "cuda"):
                differs = difference(case)
                ours, plain = (milliseconds(run, flush, a.repeats) for run in (case.ours, case.plain))
                rate = case.n_bytes / ours
                print(
                    f"  {case.name:<20} {ours:10.3f} {plain:11.3f} {plain / ours:6.2f} {rate / 1e9:6.2f} "
                    f"{rate / bandwidth:6.0%} {differs:9.1e}"
                )


if __name__ == "__main__":
    main()
