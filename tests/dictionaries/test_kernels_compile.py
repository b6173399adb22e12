"""Every CUDA kernel compiles for the GPUs it is meant for. The compiler needs none."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mechstudy.dictionaries.kernels import cuda, cuda_select
from tests.support.processes import python


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="Triton is not installed, or is to interpret: nothing is compiled",
)
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_for(capability: int, tmp_path: Path):
    """Ampere and Hopper, for aligned and odd widths and k = 1 (Triton makes a constant of an argument that is 1)."""
    run = f"from tests.dictionaries.test_kernels_compile import compile_all; print(compile_all({capability}))"
    done = python("-c", run, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-8000:]
    kernels = {
        name for module in (cuda, cuda_select) for name, found in vars(module).items() if hasattr(found, "arg_names")
    }
    helpers = {
        "_key", "_middle", "_bisect", "_is_above", "_write", "_n_reaching", "_choose_of_row",
        "_gathered_sum", "_row_of", "_along",
    }  # fmt: skip
    assert set(done.stdout.split()) == kernels - helpers


def compile_all(capability: int) -> str:
    """Call every wrapper with `launch` made to compile; returns the kernels' names. Changes torch for the process."""
    import triton
    from triton.backends.compiler import GPUTarget

    class NoDevice:
        def get_current_target(self) -> Any:
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    names: dict[str, None] = {}

    def compile_only(kernel: Any, grid: Any, *arguments: Any, num_warps: int = 4, **constants: Any) -> None:
        names[kernel.fn.__name__] = None
        kernel.warmup(*arguments, grid=grid, num_warps=num_warps, **constants)

    triton.runtime.driver.set_active(NoDevice())
    # Nothing runs, so what a kernel would have filled must be valid as it is: each row has one entry, of feature 1.
    torch.empty, torch.empty_like = torch.ones, torch.ones_like  # type: ignore[assignment]
    torch.Tensor.new_empty = torch.Tensor.new_ones  # type: ignore[assignment, method-assign]
    cuda.launch = cuda_select.launch = compile_only  # type: ignore[assignment]
    wide, odd, narrow = (576, 4608, 32, torch.float32), (577, 1000, 100, torch.bfloat16), (7, 50, 1, torch.bfloat16)
    for width, n_features, k, dtype in (wide, odd, narrow):
        pre, table, base = (
            torch.ones(4, n_features, dtype=dtype),
            torch.ones(n_features, width, dtype=dtype),
            torch.ones(4, width),
        )
        offsets, features, values = (
            torch.arange(0, 4 * k + 1, k),
            torch.zeros(4 * k, dtype=torch.int64),
            torch.ones(4 * k),
        )
        cuda.above(pre, 0.5)
        cuda.above(pre, torch.ones(n_features))
        cuda.top_k(pre, k)
        cuda.sum_rows(offsets, features, values, table)
        cuda.sum_rows(torch.tensor([0, 1000]), features.repeat(250), values.repeat(250), table, base[:1])
        cuda.row_products(offsets, features, features, base, table)
        cuda.reconstruct(offsets, features, values, table, base)
        cuda.row_squares(base, base)
        for clip, on in ((1.0, False), (torch.ones(()), True)):
            half = base.bfloat16() if on else None
            cuda.adam(
                base, base, base, base, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, step=1, clip=clip, unit_rows=on,
                parallel_free=on, half=half,
            )  # fmt: skip
    return " ".join(names)
