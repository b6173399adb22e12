"""Files of data that the pages' scripts load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mechstudy.report.formatting import script_json


def write_data(out: Path, name: str, value: Any) -> None:
    """data/<name>.js, a classic script that hands its value to the page's loader."""
    path = out / "data" / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"mechstudy.put({script_json(name)},{script_json(value)});\n", encoding="ascii")
