"""Bytes of an activation store's files, exactly, before anything is captured. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mechstudy.activations.config import INDEX_ITEM_SIZE, NORM_ITEM_SIZE, scale_bytes, site_bytes

_SHORTEST_PROMPT = 5  # tokens: last-5 of every prompt is five rows


def store_files(n_rows: int, sites: Mapping[str, int], dtype: str) -> dict[str, int]:
    """Bytes of every file of a store that grows with its rows, exactly; ``sites`` are name -> width."""
    found = {"index.bin": n_rows * INDEX_ITEM_SIZE}
    for site, width in sites.items():
        found[f"{site}.bin"] = site_bytes(n_rows, width, dtype)
        found[f"{site}.norms.bin"] = n_rows * NORM_ITEM_SIZE
        if dtype == "int8":
            found[f"{site}.scales.bin"] = scale_bytes(n_rows, width, dtype)
    return found


def same_for_every_prompt(positions: Sequence[str]) -> bool:
    """Whether every prompt has so many of these positions, however long it is."""
    return all(item == "last" or (item.startswith("last-") and int(item[5:]) <= _SHORTEST_PROMPT) for item in positions)
