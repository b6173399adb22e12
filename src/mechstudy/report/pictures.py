"""Still pictures, drawn without a script so that they print: an aggregated circuit, and a claim's intervals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from mechstudy.report.claims import Claim
from mechstudy.report.figures import FONT, LIGHT
from mechstudy.report.formatting import clip, number, plain
from mechstudy.report.viewer import TYPES

Theme = Mapping[str, str]
Cell = tuple[int, int]  # row, column
INLINE: Theme = {token: f"var(--{token[1:]})" for token in LIGHT}

_BOX_W, _BOX_H, _GAP = 178, 19, 5
_LEFT, _TOP, _BOTTOM = 58, 14, 40
PER_CELL_BOXES, PER_CELL_DOTS = 6, 16  # features drawn at one layer and position
_DOTS_PER_LINE, _DOT = 8, 13
_STRIP_W, _STRIP_H, _STRIP_PAD = 320, 58, 12


def element(tag: str, content: str | None = None, /, **attributes: str | float) -> str:
    """An SVG element of escaped ``content``; ``_`` stands for ``-`` in names, floats get one decimal."""
    words = [
        f'{name.strip("_").replace("_", "-")}="{f"{value:.1f}" if isinstance(value, float) else value}"'
        for name, value in attributes.items()
    ]
    return f"<{' '.join([tag, *words])}" + ("/>" if content is None else f">{content}</{tag}>")


def circuit_svg(view: Mapping[str, Any], *, boxes: bool, theme: Theme, max_nodes: int = 26, max_edges: int = 60) -> str:
    """SVG of the most influential features, tokens and outputs of an aggregated view, left to right by position.

    Args:
        view: from `viewer.aggregate_view`.
        boxes: labelled boxes (for figures) or dots (for a card).
        theme: colour of each token of `figures.LIGHT`.
        max_nodes: feature nodes drawn.
        max_edges: edges drawn, the strongest ones between drawn nodes.
    """
    cell_of = list(zip(view["nodes"]["row"], view["nodes"]["column"], strict=True))
    chosen, left_out = _choose(view, cell_of, max_nodes, PER_CELL_BOXES if boxes else PER_CELL_DOTS)
    places, columns, rows, width, height = _lay_out(chosen, cell_of, boxes)
    size = {"width": width, "height": height} if boxes else {}
    parts = [element("rect", **size, fill=theme["@paper"])] if boxes else []
    for row, y in rows.items():
        parts.append(element("line", x1=_LEFT, x2=width - 8, y1=y, y2=y, stroke=theme["@grid"]))
        parts.append(text(_LEFT - 8, y + 4, view["rows"][row], theme["@muted"], 11, "end"))
    for column, x in columns.items():
        label = clip(plain(str(view["columns"][column]["label"])), 22)
        parts.append(text(x, height - 14, label, theme["@ink"], 12, "middle", 600))
    parts += _draw_edges(view, places, theme, max_edges, boxes)
    parts += [_draw_node(view, i, place, theme, boxes) for i, place in places.items()]
    for cell, n in left_out.items() if boxes else ():
        low = max(y for i, (_, y) in places.items() if cell_of[i] == cell)
        parts.append(text(columns[cell[1]] + _BOX_W / 2, low + 20, f"+ {n} more", theme["@muted"], 9, "end"))
    return element(
        "svg", "".join(parts), xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", role="img",
        aria_label="Aggregated graph", font_family=FONT, **size,
    )  # fmt: skip


def _choose(
    view: Mapping[str, Any], cell_of: Sequence[Cell], max_nodes: int, per_cell: int
) -> tuple[list[int], dict[Cell, int]]:
    """Nodes to draw, and how many of the drawn cells' features were left out."""
    kinds = [TYPES[t] for t in view["nodes"]["type"]]
    features: list[int] = []
    found: Counter[Cell] = Counter()
    for i, cell in enumerate(cell_of):
        if kinds[i] == "feature":
            found[cell] += 1
            if found[cell] <= per_cell and len(features) < max_nodes:
                features.append(i)
    kept = set(features)
    strength: dict[int, float] = defaultdict(float)
    for s, t, w, _ in _edges(view):
        strength[t] += abs(w or 0) if s in kept else 0
        strength[s] += abs(w or 0) if t in kept else 0
    ends = sorted((i for i, kind in enumerate(kinds) if kind in ("token", "logit")), key=lambda i: -strength[i])
    drawn = Counter(cell_of[i] for i in features)
    return features + ends[:14], {cell: found[cell] - n for cell, n in drawn.items() if found[cell] > n}


def _edges(view: Mapping[str, Any]) -> Iterator[tuple[int, int, float | None, int]]:
    """Source, target, weight, and whether it runs through an attention pattern."""
    return zip(*(view["edges"][field] for field in ("source", "target", "weight", "qk")), strict=True)


def _lay_out(
    chosen: Sequence[int], cell_of: Sequence[Cell], boxes: bool
) -> tuple[dict[int, tuple[float, float]], dict[int, float], dict[int, float], int, int]:
    """Places of the nodes, x of the columns, y of the rows; width and height."""
    cells: dict[Cell, list[int]] = defaultdict(list)
    for i in chosen:
        cells[cell_of[i]].append(i)
    used_columns = sorted({column for _, column in cells})
    per_line, pitch = (1, _BOX_H + _GAP) if boxes else (_DOTS_PER_LINE, _DOT)
    most: dict[int, int] = defaultdict(int)
    for (row, _), members in cells.items():
        most[row] = max(most[row], len(members))
    widest = min(per_line, max(most.values(), default=1))
    column_width = _BOX_W + 34 if boxes else max(96, _DOT * widest + 24)
    columns = {c: _LEFT + column_width * (k + 0.5) for k, c in enumerate(used_columns)}
    rows: dict[int, float] = {}
    bottom = _TOP
    for row in sorted(most, reverse=True):
        height = -(-most[row] // per_line) * pitch + (26 if boxes else 17)
        rows[row] = bottom + height / 2
        bottom += height
    places = {}
    for i in chosen:
        row, column = cell_of[i]
        members = cells[cell_of[i]]
        line, k = divmod(members.index(i), per_line)
        n_lines, in_line = -(-len(members) // per_line), min(per_line, len(members) - line * per_line)
        dx, dy = (k - (in_line - 1) / 2) * _DOT, (line - (n_lines - 1) / 2) * pitch
        places[i] = (columns[column] + dx, rows[row] + dy)
    return places, columns, rows, int(_LEFT + column_width * max(1, len(used_columns)) + 12), bottom + _BOTTOM


def _draw_edges(
    view: Mapping[str, Any],
    places: Mapping[int, tuple[float, float]],
    theme: Theme,
    max_edges: int,
    boxes: bool,
) -> Iterator[str]:
    known = [(s, t, w, qk) for s, t, w, qk in _edges(view) if s in places and t in places and w]
    drawn = [edge for edge in known if not edge[3]][:max_edges]
    drawn += [edge for edge in known if edge[3]][: max_edges // 4]
    top = max((abs(w) for _, _, w, _ in drawn), default=1.0)
    half = _BOX_H / 2 if boxes else 4
    for s, t, w, qk in reversed(drawn):
        (x1, y1), (x2, y2) = places[s], places[t]
        path = _beside(x1, y1, x2, y2) if boxes and abs(x1 - x2) < 30 else _between(x1, y1 - half, x2, y2 + half)
        share = abs(w) / top
        yield element(
            "path", d=path, fill="none", stroke=theme["@pattern" if qk else "@pos" if w > 0 else "@neg"],
            stroke_width=f"{0.6 + 3 * share:.2f}", stroke_opacity=f"{0.25 + 0.6 * share:.2f}",
            **{"stroke-dasharray": "1.5 3"} if qk else {"stroke-dasharray": "5 3"} if w < 0 else {},
        )  # fmt: skip


def _between(x1: float, y1: float, x2: float, y2: float) -> str:
    """A curve from the top of a node to the bottom of another, bent around nodes between them in one column."""
    middle = (y1 + y2) / 2
    bow = 0.22 * abs(y1 - y2) if abs(x1 - x2) < 30 and abs(y1 - y2) > 40 else 0.0
    return _curve(x1, y1, x1 - bow, middle, x2 - bow, middle, x2, y2)


def _beside(x1: float, y1: float, x2: float, y2: float) -> str:
    """A curve along the left side of a stack of boxes."""
    x1, x2 = x1 - _BOX_W / 2, x2 - _BOX_W / 2
    out = min(22.0, 6 + 0.08 * abs(y1 - y2))
    return _curve(x1, y1, x1 - out, y1, x2 - out, y2, x2, y2)


def _curve(*points: float) -> str:
    return "M{:.1f} {:.1f}C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}".format(*points)


def _draw_node(view: Mapping[str, Any], i: int, place: tuple[float, float], theme: Theme, boxes: bool) -> str:
    node = {field: values[i] for field, values in view["nodes"].items()}
    x, y = place
    feature, logit = (TYPES[node["type"]] == kind for kind in ("feature", "logit"))
    label = plain(str(node["label"] or node["id"]))
    name = f"L{node['layer']} #{node['feature']}" if feature else label
    tip = element("title", escape(f"{name} {label}" if feature else name))
    if not boxes and feature:
        return element("circle", tip, cx=x, cy=y, r=4.6, fill=theme["@effect"])
    if not boxes:
        colour = theme["@ink" if logit else "@muted"]
        return element("rect", tip, x=x - 4.2, y=y - 4.2, width=8.4, height=8.4, rx=1.5, fill=colour)
    box = element(
        "rect", x=x - _BOX_W / 2, y=y - _BOX_H / 2, width=_BOX_W, height=_BOX_H, rx=4 if feature else 9,
        fill=theme["@paper" if feature else "@mid"], stroke=theme["@effect" if feature else "@axis"],
    )  # fmt: skip
    shown = f"#{node['feature']} {label if node['label'] else ''}".strip() if feature else name
    return element("g", f"{tip}{box}{text(x, y + 3.6, clip(shown, 34), theme['@ink'], 9.5, 'middle')}")


def text(x: float, y: float, label: str, fill: str, font_size: float, anchor: str, weight: int = 400) -> str:
    """A line of SVG text, escaped."""
    return element(
        "text", escape(label), x=float(x), y=float(y), fill=fill, font_size=font_size, text_anchor=anchor,
        font_weight=weight,
    )  # fmt: skip


def strip(claim: Claim, claims: Sequence[Claim]) -> Markup:
    """SVG: circuit above, matched control below, zero as a line, ends labelled; one scale for all ``claims``."""
    intervals = [m for c in claims for m in (c.effect, c.control)]
    values: list[float] = [0.0, *(v for m in intervals for v in (m.mean, *(m.ci95 or ())) if v is not None)]
    margin = 0.06 * ((max(values) - min(values)) or 1.0)
    low, high = min(values) - margin, max(values) + margin

    def x(value: float) -> float:
        return _STRIP_PAD + (value - low) / (high - low) * (_STRIP_W - 2 * _STRIP_PAD)

    def below(value: float, label: str) -> str:
        return element("text", label, class_="strip-label", x=x(value), y=56, text_anchor="middle")

    parts = [
        element("line", class_="strip-axis", x1=_STRIP_PAD, x2=_STRIP_W - _STRIP_PAD, y1=42, y2=42),
        element("line", class_="strip-zero", x1=x(0), x2=x(0), y1=4, y2=46),
        below(0, "0"),
    ]
    digits = 1 if high - low > 1 else 2 if high - low > 0.1 else 3
    for end in (low * 0.94, high * 0.94):
        if abs(x(end) - x(0)) > 30:
            parts.append(below(end, number(end, digits, scientific=False)))
    for measured, y, name in ((claim.effect, 14, "strip-effect"), (claim.control, 31, "strip-control")):
        if measured.mean is None:
            continue
        if measured.ci95:
            left, right = map(x, measured.ci95)
            width = max(1.5, right - left)
            parts.append(element("rect", class_=f"{name} strip-ci", x=left, width=width, y=y - 4, height=8, rx=4))
        middle = x(measured.mean)
        if name == "strip-effect":
            parts.append(element("circle", class_=name, cx=middle, cy=y, r=4.5))
        else:
            parts.append(element("path", class_=name, d=f"M{middle:.1f} {y - 5}l5 5l-5 5l-5 -5z"))
    label = (
        f"Effect {number(claim.effect.mean)}, control {number(claim.control.mean)}, on a scale from "
        f"{number(low, 1)} to {number(high, 1)}"
    )
    size = f"0 0 {_STRIP_W} {_STRIP_H}"
    return Markup(element("svg", "".join(parts), class_="strip", viewBox=size, role="img", aria_label=label))
