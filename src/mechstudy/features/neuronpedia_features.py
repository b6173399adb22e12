"""Feature pages in the files of Neuronpedia's exports, which an instance of it imports.

Of each layer a folder ``<model>/<layer>-<set>/``: ``release.jsonl``, ``model.jsonl``, ``sourceset.jsonl`` and
``source.jsonl`` of one line, and ``features/``, ``activations/`` and ``explanations/`` with ``batch-<n>.jsonl.gz``,
whose lines are rows of the tables Neuron, Activation and Explanation.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CREATOR = "clkht01d40000jv08hvalcvly"  # the user that an instance of Neuronpedia begins with
BATCH = 128  # features of a file

Row = dict[str, Any]


@dataclass(frozen=True)
class Export:
    """What the rows of an export have in common.

    Attributes:
        model: its id there, such as ``gpt2-small``.
        set_name: of the source set; a layer's source is ``<layer>-<set_name>``.
        creator: id of the user whose rows they become.
        created: time of the run, in ISO's form.
        n_layers: of the model.
        d_mlp: neurons of each.
        dataset: what the text is from.
        n_documents: of the text that was searched.
        context: tokens of each.
    """

    model: str
    set_name: str
    creator: str
    created: str
    n_layers: int
    d_mlp: int
    dataset: str
    n_documents: int
    context: int


def identifier(name: str) -> str:
    """Lower-case letters, digits, dashes and dots, as ids are there."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "x"


def write_neuronpedia(
    folder: Path, pages: Sequence[Mapping[str, Any]], explanations: Mapping[tuple[int, int], str], export: Export
) -> list[str]:
    """Write the pages of each layer as a source of its own; those of neurons are of the set ``<set_name>-neurons``.

    Args:
        folder: takes the folder of the model.
        pages: of `feature_pages`.
        explanations: (layer, feature) -> its explanation.
        export: what the rows have in common.

    Returns:
        The names of the sources.
    """
    by_source: dict[tuple[int, str], list[Mapping[str, Any]]] = defaultdict(list)
    for page in pages:
        neurons = "-neurons" if page["kind"] == "neurons" else ""
        by_source[page["layer"], f"{export.set_name}{neurons}"].append(page)
    sources = []
    for (layer, set_name), of_source in sorted(by_source.items()):
        source = f"{layer}-{set_name}"
        place = folder / export.model / source
        for name, row in _about(source, set_name, of_source[0]["kind"], export).items():
            _write(place / f"{name}.jsonl", [row])
        for number, start in enumerate(range(0, len(of_source), BATCH)):
            batch = of_source[start : start + BATCH]
            said = [page for page in batch if (layer, page["feature"]) in explanations]
            _write(
                place / "features" / f"batch-{number}.jsonl.gz", [_neuron(p, source, set_name, export) for p in batch]
            )
            _write(
                place / "activations" / f"batch-{number}.jsonl.gz",
                [_activation(p, e, source, export) for p in batch for e in p.get("examples") or ()],
            )
            _write(
                place / "explanations" / f"batch-{number}.jsonl.gz",
                [_explanation(explanations[layer, p["feature"]], p, source, export) for p in said],
            )
        sources.append(source)
    return sources


def _about(source: str, set_name: str, kind: str, export: Export) -> dict[str, Row]:
    """The rows of release, model, source set and source."""
    common = {"creatorId": export.creator, "createdAt": export.created}
    name = export.model
    return {
        "release": common
        | {"name": export.set_name, "description": export.set_name, "creatorName": "mechstudy", "visibility": "PUBLIC",
           "urls": [], "defaultUmapSourceIds": []},
        "model": common
        | {"id": name, "displayName": name, "displayNameShort": name, "layers": export.n_layers,
           "neuronsPerLayer": export.d_mlp, "owner": "", "visibility": "PUBLIC", "inferenceEnabled": False,
           "updatedAt": export.created},
        "sourceset": common
        | {"modelId": name, "name": set_name, "description": kind.replace("_", " "), "type": "",
           "creatorName": "mechstudy", "releaseName": export.set_name, "urls": [], "visibility": "PUBLIC"},
        "source": common
        | {"id": source, "modelId": name, "setName": set_name, "visibility": "PUBLIC", "hasDashboards": True,
           "inferenceEnabled": False, "dataset": export.dataset, "num_prompts": export.n_documents,
           "num_tokens_in_prompt": export.context},
    }  # fmt: skip


def _neuron(page: Mapping[str, Any], source: str, set_name: str, export: Export) -> Row:
    top, bottom = page.get("top_logits") or (), page.get("bottom_logits") or ()
    middles, counts = _histogram(page.get("histogram") or {})
    return _key(page, source, export) | {
        "sourceSetName": set_name,
        "creatorId": export.creator,
        "createdAt": export.created,
        "maxActApprox": page["max_activation"],
        "frac_nonzero": page["frequency"],
        "hasVector": False,
        "pos_str": [_text(row["token"]) for row in top],
        "pos_values": [row["value"] for row in top],
        "neg_str": [_text(row["token"]) for row in bottom],
        "neg_values": [row["value"] for row in bottom],
        "freq_hist_data_bar_values": middles,
        "freq_hist_data_bar_heights": counts,
    }


def _histogram(histogram: Mapping[str, Any]) -> tuple[list[float], list[int]]:
    """Middles of bins and counts, from the smallest activation to the largest; empty where a page has no histogram."""
    below, above = histogram.get("negative") or [], histogram.get("positive") or []
    width = float(histogram.get("bin_width") or 0)
    return [width * (i + 0.5) for i in range(-len(below), len(above))], [*below[::-1], *above]


def _activation(page: Mapping[str, Any], example: Mapping[str, Any], source: str, export: Export) -> Row:
    values = [float(value or 0) for value in example["activations"]]
    key = _key(page, source, export)
    return key | {
        "id": _id(key, example),
        "tokens": [_text(token) for token in example["tokens"]],
        "values": values,
        "maxValue": max(values),
        "maxValueTokenIndex": values.index(max(values)),
        "minValue": min(values),
        "creatorId": export.creator,
        "createdAt": export.created,
        "dataSource": export.dataset,
        "dataIndex": str(example.get("document")),
    }


def _explanation(text: str, page: Mapping[str, Any], source: str, export: Export) -> Row:
    key = _key(page, source, export)
    return key | {
        "id": _id(key, text),
        "description": text,
        "authorId": export.creator,
        "notes": "written by mechstudy",
        "createdAt": export.created,
        "updatedAt": export.created,
    }


def _key(page: Mapping[str, Any], source: str, export: Export) -> Row:
    return {"modelId": export.model, "layer": source, "index": str(page["feature"])}


def _id(*parts: object) -> str:
    """25 characters, as ids are there; the same for the same row."""
    return f"c{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}"


def _text(token: object) -> str:
    """A token that a database of UTF-8 takes: without zero bytes and unpaired surrogates."""
    return str(token).replace("\0", " ").encode("utf-8", "replace").decode()


def _write(file: Path, rows: Iterable[Row]) -> None:
    """Lines of JSON; compressed, and without the time, where the name says so. Nothing without rows."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    if not text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode(), mtime=0) if file.suffix == ".gz" else text.encode())
