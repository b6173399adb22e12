"""Edits that depend on what a site holds in the same pass, and edits in a row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from mechstudy.models.sites import Site


class SiteReader:
    """Remembers a site's activations of the running pass, by ``edits`` that change nothing; `take` returns them.

    ``resid_mid`` has no edits of its own: it is the sum of ``resid_pre`` and ``attn_out``.
    """

    def __init__(self, site: Site) -> None:
        parts = ("resid_pre", "attn_out") if site.kind == "resid_mid" else (site.kind,)
        self._held: dict[Site, Tensor] = {}
        self._sites = [Site(kind, site.layer) for kind in parts]
        self.edits: dict[Site, Callable[[Tensor], Tensor]] = {part: self._keeping(part) for part in self._sites}

    def take(self) -> Tensor:
        """The activations [B, T, d], which are then forgotten."""
        first, *others = (self._held.pop(site) for site in self._sites)
        return first + others[0] if others else first

    def _keeping(self, site: Site) -> Callable[[Tensor], Tensor]:
        def keep(x_BTD: Tensor) -> Tensor:
            self._held[site] = x_BTD
            return x_BTD

        return keep


def chained(edits: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """Several edits of one site, in order, as one."""

    def run(x_BTD: Tensor) -> Tensor:
        for edit in edits:
            x_BTD = edit(x_BTD)
        return x_BTD

    return run


def merged(parts: Sequence[Mapping[Site, Callable[[Tensor], Tensor]]]) -> dict[Site, Callable[[Tensor], Tensor]]:
    """Several sets of edits as one; where two have the same site, in order."""
    chains: dict[Site, list[Callable[[Tensor], Tensor]]] = defaultdict(list)
    for edits in parts:
        for site, edit in edits.items():
            chains[site].append(edit)
    return {site: chained(some) for site, some in chains.items()}
