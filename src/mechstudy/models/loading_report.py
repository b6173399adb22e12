"""What transformers reports of the tensors that it loaded: those missing, of another size, or left over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.models.families import Family

_SAME = "config.json and the weights of one model: fetch or copy the folder again"
# Masks and rotary frequencies that older versions of transformers saved.
_BUFFER = re.compile(r"(attn|attention)\.(masked_)?bias$|inv_freq$")


def check_report(report: Mapping[str, Any], arch: Family, n_layers: int, folder: Path) -> None:
    """Checks that the files' tensors are those of the model that config.json describes.

    Raises:
        MechstudyError: tensors are missing or of another size, or tensors of the blocks are left over: of layers that
            config.json does not name, or of parts that it switches off. The model would be another one.
    """
    if missing := sorted(report["missing_keys"]):
        raise MechstudyError(
            f"the weights are incomplete: {len(missing)} tensors are missing",
            where=str(folder),
            facts={"first": missing[0]},
            fix="fetch the model again",
        )
    for name, found, expected in sorted(report.get("mismatched_keys") or ()):
        raise MechstudyError(
            f"tensor {name} has another size than config.json says",
            where=str(folder),
            facts={"found": str(list(found)), "expected": str(list(expected))},
            fix=_SAME,
        )
    _refuse_left_over(report.get("unexpected_keys") or (), arch, n_layers, folder)


def _refuse_left_over(names: Iterable[str], arch: Family, n_layers: int, folder: Path) -> None:
    block = re.compile(rf"(?:\w+\.)?{arch.blocks}\.(\d+)\..+")
    layers = {name: int(found[1]) for name in sorted(names) if (found := block.fullmatch(name))}
    left = {name: layer for name, layer in layers.items() if not _BUFFER.search(name)}
    if not left:
        return
    what = f"{len(left)} tensors of the weights have no place in the model that config.json describes"
    if (most := max(left.values())) >= n_layers:
        what = f"the weights hold {most + 1} layers, and config.json names {n_layers}"
    raise MechstudyError(what, where=str(folder), facts={"first": next(iter(left))}, fix=_SAME)
