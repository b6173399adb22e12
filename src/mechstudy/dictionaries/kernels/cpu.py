"""The kernels on a CPU."""

from mechstudy.dictionaries.kernels.cpu_products import (
    adam,
    by_feature,
    gradient_rows,
    reconstruct,
    row_products,
    sum_entries,
    sum_rows,
)
from mechstudy.dictionaries.kernels.cpu_select import batch_top_k, between, positive_top_k, top_k
from mechstudy.dictionaries.kernels.numba_tools import supports

__all__ = [
    "adam",
    "batch_top_k",
    "between",
    "by_feature",
    "gradient_rows",
    "positive_top_k",
    "reconstruct",
    "row_products",
    "sum_entries",
    "sum_rows",
    "supports",
    "top_k",
]
