"""Small inline pictures of a claim's effect and control, drawn without a script so that they print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from mechstudy.report.claims import Claim
from mechstudy.report.formatting import number

_WIDTH, _HEIGHT, _PAD = 320, 58, 12


def with_strips(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Claims with a picture of their intervals on one common scale, so that cards can be compared."""
    domain = _domain(claims)
    return [{"claim": claim, "strip": _strip(claim, domain)} for claim in claims]


def _domain(claims: Sequence[Claim]) -> tuple[float, float]:
    """A range that holds zero and every interval."""
    values = [0.0]
    for c in claims:
        values += [v for m in (c.effect, c.control) for v in (m.mean, *(m.ci95 or ())) if v is not None]
    low, high = min(values), max(values)
    margin = 0.06 * ((high - low) or 1.0)
    return low - margin, high + margin


def _strip(claim: Claim, domain: tuple[float, float]) -> Markup:
    """SVG: circuit above, matched control below, zero as a line, ends labelled."""
    low, high = domain

    def x(value: float) -> float:
        return _PAD + (value - low) / (high - low) * (_WIDTH - 2 * _PAD)

    label = (
        f"Effect {number(claim.effect.mean)}, control {number(claim.control.mean)}, on a scale from "
        f"{number(low, 1)} to {number(high, 1)}"
    )
    parts = [
        f'<svg class="strip" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">',
        f'<line class="strip-axis" x1="{_PAD}" x2="{_WIDTH - _PAD}" y1="42" y2="42"/>',
        f'<line class="strip-zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="4" y2="46"/>',
        f'<text class="strip-label" x="{x(0):.1f}" y="56" text-anchor="middle">0</text>',
    ]
    digits = 1 if high - low > 1 else 2 if high - low > 0.1 else 3
    for end in (low * 0.94, high * 0.94):
        if abs(x(end) - x(0)) > 30:
            shown = number(end, digits, scientific=False)
            parts.append(f'<text class="strip-label" x="{x(end):.1f}" y="56" text-anchor="middle">{shown}</text>')
    for measured, y, name in ((claim.effect, 14, "effect"), (claim.control, 31, "control")):
        mean, ci = measured.mean, measured.ci95
        if mean is None:
            continue
        if ci:
            parts.append(
                f'<rect class="strip-{name} strip-ci" x="{x(ci[0]):.1f}" width="{max(1.5, x(ci[1]) - x(ci[0])):.1f}" '
                f'y="{y - 4}" height="8" rx="4"/>'
            )
        point = (
            f'<circle class="strip-{name}" cx="{x(mean):.1f}" cy="{y}" r="4.5"/>'
            if name == "effect"
            else f'<path class="strip-{name}" d="M{x(mean):.1f} {y - 5}l5 5l-5 5l-5 -5z"/>'
        )
        parts.append(point)
    return Markup("".join(parts) + "</svg>")
