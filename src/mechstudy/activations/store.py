"""The on-disk activation store: raw rows of bf16, f32 or int8, shuffled once as they are written.

A folder holds, for every site, ``<site>.bin`` (``n_rows x width`` little-endian numbers, no header), for int8
``<site>.scales.bin`` (float32, one for every 64 coordinates of a row), and ``<site>.norms.bin`` (float32 Euclidean norm
of each row); ``index.bin`` (int32 document, position, token of each row); ``statistics.safetensors``
(``<site>.mean``, float64) and ``store.json``. Row i means the same token in all. docs/artifacts.md is normative.
"""

from mechstudy.activations.opened import Index, SiteFiles, Store
from mechstudy.activations.writer import StoreWriter, merge

__all__ = ["Index", "SiteFiles", "Store", "StoreWriter", "merge"]
