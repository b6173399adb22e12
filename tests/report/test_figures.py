"""Figures depend on the run alone: the package's font, whatever fonts a machine has."""

# ruff: noqa: RUF001 - the typography of the figures is under test

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mechstudy.report import charts
from mechstudy.report.figures import FONT, FONTS, Figures, chart_themes
from mechstudy.report.formatting import visible

FONTS_CONF = '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig><dir>{}</dir></fontconfig>'
DRAW = """
import sys
from pathlib import Path
from mechstudy.report import charts
from mechstudy.report.claims import Measured
from mechstudy.report.figures import Figures

label, out = sys.argv[1:]
tests = [(label, 24, Measured(-2.3, (-2.6, -2.0)), Measured(0.0, None, "one group"))]
Figures(Path(out)).add("effects", charts.forest(tests, "logit difference"), "Effects: α − β → γ")
"""


def drawn(folder: Path, label: str, fonts: Path | None) -> dict[str, str]:
    """Checksums of a figure by suffix, drawn by a process that finds system fonts in one folder only, or the usual."""
    folder.mkdir()
    env = dict(os.environ)
    if fonts is not None:
        (folder / "fonts.conf").write_text(FONTS_CONF.format(fonts))
        env["FONTCONFIG_FILE"] = str(folder / "fonts.conf")
    subprocess.run([sys.executable, "-c", DRAW, label, str(folder)], env=env, check=True)
    return {path.suffix: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "figures").iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="system fonts are hidden through fontconfig")
def test_a_figure_is_the_same_with_and_without_system_fonts(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    label = "ablating “Wide Miles” ↵ ⇥ 3 features"
    with_fonts = drawn(tmp_path / "a", label, None)
    assert with_fonts.keys() == {".svg", ".png"}
    assert drawn(tmp_path / "b", label, tmp_path / "none") == with_fonts
    svg = (tmp_path / "a" / "figures" / "effects.svg").read_text()
    assert set(re.findall(r'font-family="([^"]*)"', svg)) == {FONT}


@pytest.mark.skipif(sys.platform != "linux", reason="system fonts are hidden through fontconfig")
def test_text_that_the_font_lacks_is_drawn_with_a_font_of_the_machine(tmp_path: Path) -> None:
    hebrew = Path("/usr/share/fonts/truetype/dejavu")
    if not hebrew.exists():
        pytest.skip("no DejaVu fonts here")
    (tmp_path / "none").mkdir()
    boxes, letters = drawn(tmp_path / "a", "שלום", tmp_path / "none"), drawn(tmp_path / "b", "שלום", hebrew)
    assert boxes[".png"] != letters[".png"]  # without a font the characters are boxes
    assert "שלום" in (tmp_path / "a" / "figures" / "effects.svg").read_text()  # and text in the SVG


def test_the_charts_of_pages_use_the_font_that_travels_with_them() -> None:
    family = FONT.partition(",")[0]
    assert all(theme["config"]["font"] == FONT for theme in chart_themes().values())
    style = (FONTS.parent / "assets" / "fonts.css").read_text()
    assert f'"{family}"' in (FONTS.parent / "assets" / "report.css").read_text()
    files = re.findall(r'url\("([^"]+)"\)', style)
    assert len(files) == 2 and all((FONTS / file).is_file() for file in files)


def test_the_dose_response_names_its_directions_in_a_legend(tmp_path: Path) -> None:
    doses = [
        {"direction": direction, "alpha": a, "effect": 0.5 * a, "ci95": None, "n": 5}
        for direction in charts.DIRECTIONS for a in (-1, 0, 1)
    ]  # fmt: skip
    Figures(tmp_path).add("dose", charts.dose_response({"dose_response": doses}), "Dose-response")
    svg = (tmp_path / "figures" / "dose.svg").read_text()
    legend = re.findall(r'role-legend-label".*?<text[^>]*>([^<]*)</text>', svg)
    assert legend == list(charts.DIRECTIONS.values()) and "(no interval)" in svg


def test_the_fonts_are_small_and_carry_their_licence() -> None:
    assert sum(file.stat().st_size for file in FONTS.iterdir()) < 500_000
    assert "SIL OPEN FONT LICENSE" in (FONTS / "OFL.txt").read_text()
    assert visible("a\n\t") == "a↵⇥"  # drawn in the first test
