"""A still picture of a verdict's circuit: its nodes by position and layer, and the same in words."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from mechstudy.circuits.node_names import OTHER
from mechstudy.report.formatting import clip, plain
from mechstudy.report.pictures import Theme, element, text

_NODE = re.compile(r"(?P<kind>f|error|head|mlp)\.(?P<layer>\d+)(?:\.(?P<number>\d+))?@(?P<position>.+)", re.DOTALL)
_WORDS = {"head": "head", "mlp": "MLP", "f": "feature", "error": "error"}
FIRST = "first token"
_WIDTH, _LEFT, _TOP, _BOTTOM, _LABELLED = 900, 44, 16, 52, 14


@dataclass(frozen=True)
class Member:
    """A node of a circuit, by its name: ``head.26.0@last``."""

    kind: str
    layer: int
    number: int | None
    position: str
    effect: float

    @classmethod
    def of(cls, name: str, effect: float) -> Member | None:
        """The node; None where the name is of something else."""
        if (match := _NODE.fullmatch(name)) is None:
            return None
        number = match["number"]
        return cls(match["kind"], int(match["layer"]), int(number) if number else None, match["position"], effect)

    @property
    def short(self) -> str:
        """``head 26.0``, ``MLP 9``."""
        place = f"{self.layer}" if self.number is None else f"{self.layer}.{self.number}"
        return f"{_WORDS[self.kind]} {place}"


def members_of(rows: Iterable[Mapping[str, object]]) -> list[Member]:
    """The members of a verdict's record, the strongest first."""
    found = [Member.of(str(row["node"]), float(str(row["effect"]))) for row in rows]
    return sorted((m for m in found if m is not None), key=lambda m: -abs(m.effect))


def positions_in_order(members: Sequence[Member], pairs: Iterable[Mapping[str, object]]) -> list[str]:
    """The members' positions from left to right, by where prompts have them; unnamed tokens first."""
    places: dict[str, list[int]] = defaultdict(list)
    for pair in pairs:
        positions = pair.get("positions")
        for name, index in (positions if isinstance(positions, Mapping) else {}).items():
            places[str(name)].append(int(index))
    mean = {name: sum(at) / len(at) for name, at in places.items()}
    mean |= {FIRST: -2.0, OTHER: -1.0}
    return sorted({m.position for m in members}, key=lambda name: (mean.get(name, float("inf")), name))


def in_words(members: Sequence[Member], positions: Sequence[str]) -> list[dict[str, object]]:
    """A row for each position: how many nodes, their share of the sum of sizes of effects, and which."""
    total = sum(abs(m.effect) for m in members) or 1.0
    rows: list[dict[str, object]] = []
    for position in positions:
        here = [m for m in members if m.position == position]
        counts = Counter(m.kind for m in here)
        parts = []
        for kind, word in _WORDS.items():
            if n := counts[kind]:
                layers = sorted(m.layer for m in here if m.kind == kind)
                span = f"{layers[0]}" if layers[0] == layers[-1] else f"{layers[0]} to {layers[-1]}"
                parts.append(
                    f"{n} {word if n == 1 else word + 's'} (layer{'' if layers[0] == layers[-1] else 's'} {span})"
                )
        rows.append(
            {
                "position": position,
                "n": len(here),
                "share": sum(abs(m.effect) for m in here) / total,
                "nodes": ", ".join(parts),
                "strongest": ", ".join(m.short for m in here[:3]),
            }
        )
    return rows


def members_svg(
    members: Sequence[Member], positions: Sequence[str], n_layers: int, tokens: Mapping[str, str], theme: Theme
) -> Markup:
    """SVG: positions from left to right, layers upwards; a mark grows with its node's effect.

    Args:
        members: of the circuit, the strongest first.
        positions: in order.
        n_layers: of the model.
        tokens: an example of the token at each position.
        theme: colour of each token of `figures.LIGHT`.
    """
    row = max(9.0, min(22.0, 420 / max(n_layers, 1)))
    height = int(_TOP + row * n_layers + _BOTTOM)
    column = (_WIDTH - _LEFT - 8) / max(len(positions), 1)
    x_of = {name: _LEFT + column * (i + 0.5) for i, name in enumerate(positions)}
    largest = max((abs(m.effect) for m in members), default=1.0) or 1.0
    parts = []
    for layer in range(0, n_layers, 5 if n_layers > 12 else 1):
        y = _TOP + row * (n_layers - 0.5 - layer)
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - 8, y1=y, y2=y, stroke=theme["@grid"]))
        parts.append(text(_LEFT - 8, y + 4, str(layer), theme["@muted"], 11, "end"))
    for name, x in x_of.items():
        left = x - 0.4 * column
        parts.append(text(left, height - 28, clip(plain(name), 20), theme["@ink"], 12.5, "start", 600))
        if name in tokens:
            shown = clip(f"“{plain(tokens[name]).strip()}”", 22)
            parts.append(text(left, height - 11, shown, theme["@muted"], 11.5, "start"))
    cells: dict[tuple[str, int], list[Member]] = defaultdict(list)
    for m in members:
        cells[m.position, m.layer].append(m)
    labelled = set(members[:_LABELLED])
    for (position, layer), here in cells.items():
        y = _TOP + row * (n_layers - 0.5 - layer)
        x = x_of[position] - 0.4 * column
        for m in here:
            radius = 2.6 + 7.5 * (abs(m.effect) / largest) ** 0.5
            x += radius
            parts.append(_mark(m, x, y, radius, theme))
            x += radius + 3
        if named := [m.short for m in here if m in labelled]:
            room = int((x_of[position] + column / 2 - x) / 6.2)
            parts.append(text(x + 2, y + 4, clip(", ".join(named), max(4, room)), theme["@ink"], 11, "start"))
    return Markup(
        element(
            "svg", "".join(parts), viewBox=f"0 0 {_WIDTH} {height}", role="img", class_="members",
            aria_label=f"The circuit's {len(members)} nodes by position and layer",
        )
    )  # fmt: skip


def _mark(m: Member, x: float, y: float, radius: float, theme: Theme) -> str:
    """A circle for a head, a square for an MLP, a diamond for a feature, a hollow diamond for an error."""
    colour = theme["@effect" if m.effect < 0 else "@neg"]
    tip = element("title", escape(f"{m.short} at {m.position}: replacing it changes the contrast by {m.effect:+.3f}"))
    if m.kind == "head":
        return element("circle", tip, cx=x, cy=y, r=radius, fill=colour)
    if m.kind == "mlp":
        side = 1.8 * radius
        return element("rect", tip, x=x - side / 2, y=y - side / 2, width=side, height=side, rx=1.5, fill=colour)
    path = (
        f"M{x:.1f} {y - 1.2 * radius:.1f}l{1.2 * radius:.1f} {1.2 * radius:.1f}l{-1.2 * radius:.1f} {1.2 * radius:.1f}"
    )
    path += f"l{-1.2 * radius:.1f} {-1.2 * radius:.1f}z"
    if m.kind == "error":
        return element("path", tip, d=path, fill="none", stroke=colour, stroke_width=1.6)
    return element("path", tip, d=path, fill=colour)
