"""Labels that others gave features: files of Neuronpedia's exports, of delphi, and plain JSON."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.features.endpoint import one_line
from mechstudy.features.questions import LONGEST

Labels = dict[str, tuple[str, str]]
"""``13/1741`` -> the label, and who gave it."""

_MOST_BYTES = 1 << 30  # of a file, unpacked
_DELPHI = re.compile(r"(?P<module>.+)_latent(?P<feature>\d+)\.txt")
_FORMS = (
    'Neuronpedia\'s explanations (.jsonl, .jsonl.gz), delphi\'s (*_latent7.txt), or JSON such as {"13/7": "plurals"}'
)


def given_labels(place: Path) -> Labels:
    """The labels of a file, or of all files of explanations below a folder; the last one of a feature counts.

    Rows of Neuronpedia have ``layer`` (``13-my-set``), ``index`` and ``description``. A name of delphi's holds one
    number but the feature's, the layer's. Texts are cut to one line; nothing is checked against what features do.

    Raises:
        MechstudyError: no such place, a file of another form, or no label in it.
    """
    if not place.exists():
        raise MechstudyError("no such file or folder", where=str(place), fix=_FORMS)
    files = sorted(path for path in place.rglob("*") if path.is_file() and _known(path)) if place.is_dir() else [place]
    found: Labels = {}
    for file in files:
        found |= _of_file(file, lenient=place.is_dir())
    if not found:
        raise MechstudyError("there are no labels of features", where=str(place), fix=_FORMS)
    return found


def _known(path: Path) -> bool:
    return path.name.endswith((".jsonl", ".jsonl.gz", ".json")) or _DELPHI.fullmatch(path.name) is not None


def _of_file(file: Path, *, lenient: bool) -> Labels:
    """The labels of a file; with ``lenient``, none of JSON that holds something else, as exports have beside them."""
    try:
        if match := _DELPHI.fullmatch(file.name):
            numbers = re.findall(r"\d+", match["module"])
            if len(numbers) != 1:
                raise ValueError(f"{match['module']} does not say which layer it is")
            made = {f"{int(numbers[0])}/{int(match['feature'])}": (json.loads(_text(file)), "delphi")}
        elif file.name.endswith((".jsonl", ".jsonl.gz")):
            made = _of_rows([json.loads(line) for line in _text(file).split("\n") if line.strip()])
        else:
            content = json.loads(_text(file))
            made = _of_rows(content) if isinstance(content, list) else _of_mapping(content, file.name)
    except (ValueError, KeyError, TypeError, OSError, EOFError) as error:
        if lenient and isinstance(error, (KeyError, TypeError)):
            return {}
        raise MechstudyError(f"these are no labels of features: {error}", where=str(file), fix=_FORMS) from None
    return {
        name: (one_line(str(text), LONGEST), one_line(str(by), LONGEST)) for name, (text, by) in made.items() if text
    }


def _of_rows(rows: list[Any]) -> Labels:
    return {
        f"{int(str(row['layer']).partition('-')[0])}/{int(row['index'])}": (
            row["description"],
            row.get("explanationModelName") or "Neuronpedia",
        )
        for row in rows
    }


def _of_mapping(content: Mapping[str, Any], by: str) -> Labels:
    labels: Labels = {}
    for name, text in content.items():
        layer, slash, feature = str(name).partition("/")
        if not (slash and layer.isdecimal() and feature.isdecimal() and isinstance(text, str)):
            raise KeyError(name)
        labels[f"{int(layer)}/{int(feature)}"] = text, by
    return labels


def _text(file: Path) -> str:
    if file.suffix != ".gz":
        return file.read_text(encoding="utf-8")
    with gzip.open(file) as stream:
        content = stream.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError("larger than 1 GiB unpacked")
    return content.decode("utf-8")
