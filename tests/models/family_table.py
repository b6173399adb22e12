"""The table of docs/reference/models.md, from the family table: `python -m tests.models.family_table` writes it."""

from __future__ import annotations

import re
from pathlib import Path

from mechstudy.models.families import FAMILIES, Family

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
_NORMS = {
    "rms": "RMS", "rms_plus_one": "RMS, 1 + weight", "layer": "LayerNorm", "layer_plus_one": "LayerNorm, 1 + weight",
    "layer_without_bias": "LayerNorm without bias", "layer_without_weight": "LayerNorm without weights",
}  # fmt: skip


def _order(family: Family) -> str:
    if family.parallel == "always":
        return "attention and MLP in parallel"
    if family.parallel == "config":
        return "in parallel, or one after the other"
    before, after = family.norm_attn is not None, family.norm_attn_post is not None
    return {(True, True): "norms before and after", (False, True): "norms after only"}.get(
        (before, after), "norms before"
    )


def _missing(family: Family) -> str:
    sites = []
    if family.parallel != "never":
        sites.append("`resid_mid`" + ("" if family.parallel == "always" else " (if in parallel)"))
    if family.experts:
        sites.append("`mlp_act`: the MLP is a mixture of experts")
    return ", ".join(sites)


def table() -> str:
    """One row per family."""
    head = ["| family | `model_type` | norms | block | sites it does not have |", "|---|---|---|---|---|"]
    return "\n".join(
        head
        + [
            f"| {f.name} | {' '.join(f'`{kind}`' for kind in f.model_types)} | {_NORMS[f.norm]} | {_order(f)} | "
            f"{_missing(f)} |"
            for f in sorted(FAMILIES, key=lambda f: f.name.lower())
        ]
    )


def page() -> str:
    """The whole page with today's table."""
    return re.sub(r"\| family \|.*\n(\|.*\n)+", table() + "\n", PAGE.read_text())


if __name__ == "__main__":
    PAGE.write_text(page())
