"""Fixtures of the report's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mechstudy.report import figures as figures_module


@pytest.fixture(scope="module")
def quick_bundle() -> Iterator[None]:
    """Charts and the Vega bundle are exported for real in the browser tests; here they would take most of a minute."""
    patch = pytest.MonkeyPatch()
    patch.setattr(figures_module.vl_convert, "vegalite_to_svg", lambda *_, **__: "<svg/>")
    patch.setattr(figures_module.vl_convert, "svg_to_png", lambda *_, **__: b"png")
    patch.setattr(figures_module.vl_convert, "javascript_bundle", lambda *_, **__: "/* vega */")
    yield
    patch.undo()
