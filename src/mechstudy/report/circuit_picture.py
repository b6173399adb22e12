"""A still picture of an aggregated circuit: the strongest features and edges, for the overview and for print."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from markupsafe import escape

from mechstudy.report.formatting import clip, plain
from mechstudy.report.graphs import TYPES
from mechstudy.report.style import EXPORT_FONT, LIGHT

Theme = Mapping[str, str]
INLINE: Theme = {token: f"var(--{token[1:]})" for token in LIGHT}

_BOX_W, _BOX_H, _GAP = 178, 19, 5
_LEFT, _TOP, _BOTTOM = 58, 14, 40
PER_CELL_BOXES, PER_CELL_DOTS = 6, 16  # features drawn at one layer and position
_DOTS_PER_LINE = 8


def circuit_svg(view: Mapping[str, Any], *, boxes: bool, theme: Theme, max_nodes: int = 26, max_edges: int = 60) -> str:
    """SVG of the most influential features, tokens and outputs of an aggregated view, left to right by position.

    Args:
        view: from `graphs.aggregate_view`.
        boxes: labelled boxes (for figures) or dots (for a card).
        theme: colour of each token of `style.LIGHT`.
        max_nodes: feature nodes drawn.
        max_edges: edges drawn, the strongest ones between drawn nodes.
    """
    chosen, left_out = _choose(view, max_nodes, PER_CELL_BOXES if boxes else PER_CELL_DOTS)
    places, width, height, columns, rows = _lay_out(view, chosen, boxes)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Aggregated circuit" font-family="{escape(EXPORT_FONT)}"'
        + (f' width="{width}" height="{height}">' if boxes else ">")
    ]
    if boxes:
        parts.append(f'<rect width="{width}" height="{height}" fill="{theme["@paper"]}"/>')
    for row, y in rows.items():
        label = view["rows"][row]
        parts.append(f'<line x1="{_LEFT}" x2="{width - 8}" y1="{y}" y2="{y}" stroke="{theme["@grid"]}"/>')
        parts.append(_text(_LEFT - 8, y + 4, label, theme["@muted"], 11, "end"))
    for column, x in columns.items():
        label = clip(plain(str(view["columns"][column]["label"])), 22)
        parts.append(_text(x, height - 14, label, theme["@ink"], 12, "middle", 600))
    parts += _draw_edges(view, chosen, places, theme, max_edges, boxes)
    parts += [_draw_node(view, i, places[i], theme, boxes) for i in chosen]
    for (row, column), n in left_out.items() if boxes else ():
        low = max(
            places[i][1] for i in chosen if (view["nodes"]["row"][i], view["nodes"]["column"][i]) == (row, column)
        )
        parts.append(_text(columns[column] + _BOX_W / 2, low + 20, f"+ {n} more", theme["@muted"], 9, "end"))
    return "".join(parts) + "</svg>"


def _choose(view: Mapping[str, Any], max_nodes: int, per_cell: int) -> tuple[list[int], dict[tuple[int, int], int]]:
    """Nodes to draw, and how many of the drawn cells' features were left out."""
    nodes = view["nodes"]
    features: list[int] = []
    cells: Counter[tuple[int, int]] = Counter()
    for i, t in enumerate(nodes["type"]):
        cell = (nodes["row"][i], nodes["column"][i])
        if TYPES[t] != "feature":
            continue
        cells[cell] += 1
        if cells[cell] <= per_cell and len(features) < max_nodes:
            features.append(i)
    kept = set(features)
    edges = view["edges"]
    strength: dict[int, float] = defaultdict(float)
    for s, t, w in zip(edges["source"], edges["target"], edges["weight"], strict=True):
        if s in kept:
            strength[t] += abs(w or 0)
        if t in kept:
            strength[s] += abs(w or 0)
    ends = [i for i, t in enumerate(nodes["type"]) if TYPES[t] in ("token", "logit")]
    ends.sort(key=lambda i: -strength[i])
    drawn = Counter((nodes["row"][i], nodes["column"][i]) for i in features)
    return features + ends[:14], {cell: cells[cell] - n for cell, n in drawn.items() if cells[cell] > n}


def _lay_out(
    view: Mapping[str, Any], chosen: list[int], boxes: bool
) -> tuple[dict[int, tuple[float, float]], int, int, dict[int, float], dict[int, float]]:
    nodes = view["nodes"]
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i in chosen:
        cells[(nodes["row"][i], nodes["column"][i])].append(i)
    used_rows = sorted({row for row, _ in cells})
    used_columns = sorted({column for _, column in cells})
    per_line, pitch = (1, _BOX_H + _GAP) if boxes else (_DOTS_PER_LINE, 13)
    most = {r: max(len(c) for (row, _), c in cells.items() if row == r) for r in used_rows}
    heights = {r: -(-n // per_line) * pitch + (26 if boxes else 17) for r, n in most.items()}
    widest = min(per_line, max(most.values(), default=1))
    column_width = _BOX_W + 34 if boxes else max(96, 13 * widest + 24)
    columns = {c: _LEFT + column_width * (k + 0.5) for k, c in enumerate(used_columns)}
    rows: dict[int, float] = {}
    y = float(_TOP)
    for row in reversed(used_rows):
        rows[row] = y + heights[row] / 2
        y += heights[row]
    places = {}
    for (row, column), members in cells.items():
        n_lines = -(-len(members) // per_line)
        for k, i in enumerate(members):
            line = k // per_line
            in_line = min(per_line, len(members) - line * per_line)
            dx, dy = (k % per_line - (in_line - 1) / 2) * 13, (line - (n_lines - 1) / 2) * pitch
            places[i] = (columns[column] + dx, rows[row] + dy)
    width = int(_LEFT + column_width * max(1, len(used_columns)) + 12)
    return places, width, int(y + _BOTTOM), columns, rows


def _draw_edges(
    view: Mapping[str, Any],
    chosen: list[int],
    places: Mapping[int, tuple[float, float]],
    theme: Theme,
    max_edges: int,
    boxes: bool,
) -> list[str]:
    edges, kept = view["edges"], set(chosen)
    drawn = [
        (s, t, w)
        for s, t, w in zip(edges["source"], edges["target"], edges["weight"], strict=True)
        if s in kept and t in kept and w
    ][:max_edges]
    top = max((abs(w) for _, _, w in drawn), default=1.0)
    half = _BOX_H / 2 if boxes else 4
    parts = []
    for s, t, w in reversed(drawn):
        (x1, y1), (x2, y2) = places[s], places[t]
        path = _beside(x1, y1, x2, y2) if boxes and abs(x1 - x2) < 30 else _between(x1, y1 - half, x2, y2 + half)
        share = abs(w) / top
        dash = ' stroke-dasharray="5 3"' if w < 0 else ""
        parts.append(
            f'<path d="{path}" fill="none" '
            f'stroke="{theme["@pos" if w > 0 else "@neg"]}" stroke-width="{0.6 + 3 * share:.2f}" '
            f'stroke-opacity="{0.25 + 0.6 * share:.2f}"{dash}/>'
        )
    return parts


def _between(x1: float, y1: float, x2: float, y2: float) -> str:
    """A curve from the top of a node to the bottom of another, bent around nodes between them in one column."""
    middle = (y1 + y2) / 2
    bow = 0.22 * abs(y1 - y2) if abs(x1 - x2) < 30 and abs(y1 - y2) > 40 else 0.0
    return f"M{x1:.1f} {y1:.1f}C{x1 - bow:.1f} {middle:.1f} {x2 - bow:.1f} {middle:.1f} {x2:.1f} {y2:.1f}"


def _beside(x1: float, y1: float, x2: float, y2: float) -> str:
    """A curve along the left side of a stack of boxes."""
    x1, x2 = x1 - _BOX_W / 2, x2 - _BOX_W / 2
    out = min(22.0, 6 + 0.08 * abs(y1 - y2))
    return f"M{x1:.1f} {y1:.1f}C{x1 - out:.1f} {y1:.1f} {x2 - out:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"


def _draw_node(view: Mapping[str, Any], i: int, place: tuple[float, float], theme: Theme, boxes: bool) -> str:
    nodes = view["nodes"]
    x, y = place
    kind = TYPES[nodes["type"][i]]
    label = plain(str(nodes["label"][i] or nodes["id"][i]))
    name = f"L{nodes['layer'][i]} #{nodes['feature'][i]}" if kind == "feature" else label
    tip = f"<title>{escape(f'{name} {label}' if kind == 'feature' else name)}</title>"
    if not boxes:
        colour = theme["@effect"] if kind == "feature" else theme["@ink"] if kind == "logit" else theme["@muted"]
        if kind == "feature":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.6" fill="{colour}">{tip}</circle>'
        return (
            f'<rect x="{x - 4.2:.1f}" y="{y - 4.2:.1f}" width="8.4" height="8.4" rx="1.5" fill="{colour}">{tip}</rect>'
        )
    fill, stroke = (theme["@paper"], theme["@effect"]) if kind == "feature" else (theme["@mid"], theme["@axis"])
    label = label if nodes["label"][i] else ""
    shown = f"#{nodes['feature'][i]} {label}".strip() if kind == "feature" else name
    box = (
        f'<rect x="{x - _BOX_W / 2:.1f}" y="{y - _BOX_H / 2:.1f}" width="{_BOX_W}" height="{_BOX_H}" '
        f'rx="{4 if kind == "feature" else 9}" fill="{fill}" stroke="{stroke}"/>'
    )
    return f"<g>{tip}{box}{_text(x, y + 3.6, clip(shown, 34), theme['@ink'], 9.5, 'middle')}</g>"


def _text(x: float, y: float, label: str, fill: str, font_size: float, anchor: str, weight: int = 400) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" font-size="{font_size}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(label)}</text>'
    )
