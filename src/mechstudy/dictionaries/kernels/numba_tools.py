"""Shared by the CPU kernels: tensors as NumPy arrays for Numba.

The kernels are compiled by Numba on first use and kept in its cache.

A step's time goes into reading matrices from memory, so each kernel reads its operands once and works row by row
in the caches. Rows are shared out over torch's number of threads (and its OpenMP threads, where Numba has that
layer); every row is computed whole by one thread, in a fixed order, so the number of threads changes no bit.

bfloat16 travels as its bits: int16 where only order matters (positive floats sort like their bits, and integers
compare faster), uint16 where values do (`number`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
_Integer: Any = types.Integer

# Torch's own OpenMP threads where there are any: threads spin while they wait, and two pools would fight over the
# cores. Starting them sets OpenMP's number of threads, which is torch's too, so it is set back.
_config: Any = numba.config
_config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
_threads = torch.get_num_threads()
numba.get_num_threads()
torch.set_num_threads(_threads)

# Sums may be reordered (that is what vectorises a dot product) but NaN and infinity stay what they are.
FAST = {"contract", "reassoc", "nsz", "arcp"}
INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def supports(*tensors: Tensor) -> bool:
    """Whether these kernels take the tensors: on the CPU, of a known dtype, rows side by side."""
    return all(t.device.type == "cpu" and t.dtype in INTEGERS and t.is_contiguous() for t in tensors)


def bits_of(tensor: Tensor) -> Array:
    """The bits of floats as signed integers of their width; no copy."""
    return tensor.detach().view(INTEGERS[tensor.dtype]).numpy()


def values_of(tensor: Tensor) -> Array:
    """Floats as they are, bfloat16 as uint16."""
    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def run(kernel: Callable[..., Any], *arguments: Any) -> Any:
    """Call a parallel kernel with torch's present number of threads."""
    numba.set_num_threads(min(torch.get_num_threads(), _config.NUMBA_NUM_THREADS))
    return kernel(*arguments)


def _number(typing_context: Any, x: Any) -> Any:
    """The value of a stored element: itself, or of the bfloat16 whose bits a uint16 holds."""
    if not (isinstance(x, _Integer) and x.bitwidth == 16):
        return x(x), lambda context, builder, signature, arguments: arguments[0]

    def widen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.shl(builder.zext(arguments[0], word), ir.Constant(word, 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(x), widen


number: Any = intrinsic(_number)


def _word(typing_context: Any, x: Any) -> Any:
    """The bits of a float32 as uint32."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


word: Any = intrinsic(_word)
