"""The page of a patch sweep of one prompt pair: a heat map of layers and tokens, and every cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from mechstudy.report.charts import patching
from mechstudy.report.figures import bundle, chart_themes
from mechstudy.report.formatting import clip, number, plain, visible, whole_percent
from mechstudy.report.standalone import rendered, standalone

_CHART = "chart-patching"
_OWN_STYLE = """
body { display: block; min-height: 0; }
main { margin: 0 auto; padding-top: 1.4rem; max-width: 1080px; }
"""


@dataclass(frozen=True)
class Swept:
    """A patch sweep of one prompt pair.

    ``cells`` is a frame of `interventions.patch_sweep`; ``site`` what was patched; ``clean`` and ``corrupted`` are the
    prompts' tokens as text.
    """

    cells: pl.DataFrame
    site: str
    model: str
    clean: Sequence[str]
    corrupted: Sequence[str]
    answer: str
    wrong_answer: str

    @cached_property
    def positions(self) -> list[int]:
        """Tokens of the clean prompt that were patched and where that changes something, from left to right."""
        changed = self.cells.group_by("position").agg((pl.col("effect") != 0).any().alias("any")).filter("any")
        return sorted(changed["position"].to_list()) or sorted(self.cells["position"].unique().to_list())

    @property
    def layers(self) -> list[int]:
        """The layers, ascending."""
        return sorted(self.cells["layer"].unique().to_list())

    @property
    def metric(self) -> tuple[float, float]:
        """The logit difference on the clean and on the corrupted prompt."""
        first = self.cells.row(0, named=True)
        return float(first["clean"]), float(first["corrupted"])

    def share(self, layer: int, position: int) -> float | None:
        """The share of the difference between the two prompts that patching there removes; None where it has none."""
        return self._shares.get((layer, position))

    @property
    def strongest(self) -> tuple[int, int, float]:
        """The cell of the largest share: layer, token, share."""
        (layer, position), share = max(self._shares.items(), key=lambda item: abs(item[1]))
        return layer, position, share

    def token(self, position: int, length: int = 14) -> str:
        """A token of the clean prompt with its index, as columns name it."""
        return f"{position} {clip(visible(self.clean[position]), length)}"

    @cached_property
    def _shares(self) -> dict[tuple[int, int], float]:
        rows = self.cells.select("layer", "position", "normalised").drop_nulls().iter_rows()
        return {(layer, position): share for layer, position, share in rows}


def patch_page(swept: Swept) -> str:
    """The page as HTML, which fetches nothing."""
    positions, layers = swept.positions, swept.layers
    effects = [[swept.share(layer, at) for at in positions] for layer in layers]
    names = [swept.token(at) for at in positions]
    drawn = patching({"patching": {"layers": layers, "positions": names, "effect": effects}})
    assert drawn is not None
    spec = {key: value for key, value in drawn.to_dict().items() if key not in ("config", "$schema")}
    title = plain("".join(swept.clean))
    clean, corrupted = swept.metric
    layer, at, share = swept.strongest
    main = rendered(
        "patch.html.j2",
        model=plain(swept.model),
        site=swept.site,
        clean=[(visible(token), _differs(swept, i)) for i, token in enumerate(swept.clean)],
        corrupted=[visible(token) for token in swept.corrupted],
        answer=visible(swept.answer),
        wrong_answer=visible(swept.wrong_answer),
        clean_metric=number(clean),
        corrupted_metric=number(corrupted),
        strongest=f"layer {layer}, token {swept.token(at)}: {whole_percent(share)}",
        height=spec["height"],
        chart=_CHART,
        names=names,
        rows=[(row_layer, [whole_percent(one) for one in row]) for row_layer, row in zip(layers, effects, strict=True)][
            ::-1
        ],
    )
    return standalone(
        title,
        main,
        styles=[_OWN_STYLE],
        scripts=[bundle().replace("</script", "<\\/script")],
        data={_CHART: spec, "chart-theme": chart_themes()},
    )


def _differs(swept: Swept, at: int) -> bool:
    return len(swept.clean) == len(swept.corrupted) and swept.clean[at] != swept.corrupted[at]
