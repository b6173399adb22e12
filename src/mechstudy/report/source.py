"""Reading the artifacts of a study, any of which may be absent or discarded."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mechstudy.circuits.config import no_graphs
from mechstudy.core.errors import MechstudyError

_UNIT = re.compile(r"^(?P<phase>[a-z_]+)(\[(?P<key>.*)\])?$", re.DOTALL)
_OF_GRAPHS = ("attribute", "features", "intervene")
_PER_BEHAVIOUR = ("prompts", "baseline", "attribute", "intervene")


class Source:
    """The artifacts behind a report, by unit name.

    Attributes:
        study: the study's configuration as a plain dict.
        inputs: unit name -> artifact folder; what is absent is not in it.
        units: what ran, as the runner recorded it.
        behaviours: names, in the study's order, then as found.
        layers: layers with a trained dictionary.
        variants: (layer, name) of more dictionaries of the same rows.
        no_graphs: why the study leaves graphs out; None where it does not.
    """

    def __init__(self, study: Mapping[str, Any], inputs: Mapping[str, Path], units: Sequence[Mapping[str, Any]] = ()):
        self.study = dict(study)
        self.inputs = {name: Path(path) for name, path in inputs.items()}
        self.units = [dict(u) for u in units]
        self._by_name = {u["name"]: u for u in self.units}
        self._read = cache(self._read_uncached)
        names = [*self.inputs, *self._by_name]
        declared = self.study.get("behaviours") or []
        declared = list(declared) if isinstance(declared, (list, tuple, dict)) else []
        found = [key for phase, key in map(parse_unit, names) if phase in _PER_BEHAVIOUR and key is not None]
        listed = [b.get("name", "") if isinstance(b, dict) else str(b) for b in declared]
        self.behaviours = [b for b in dict.fromkeys([*listed, *found]) if b]
        keys = {key for phase, key in map(parse_unit, names) if phase == "train" and key is not None}
        self.layers = sorted(int(k) for k in keys if re.fullmatch(r"\d+", k))
        keys = {key for phase, key in map(parse_unit, names) if phase == "variant" and key is not None}
        self.no_graphs = self._no_graphs(any(parse_unit(name)[0] in _OF_GRAPHS for name in names))
        self.variants = sorted((int(m[1]), m[2]) for k in keys if (m := re.fullmatch(r"(\d+):(.+)", k)))

    def _no_graphs(self, there: bool) -> str | None:
        behaviours, dictionaries = self.study.get("behaviours"), self.study.get("dictionaries")
        if there or not isinstance(behaviours, (list, tuple)) or not isinstance(dictionaries, dict):
            return None
        return no_graphs(len(behaviours), str((dictionaries.get("architecture") or {}).get("kind")))

    def unfinished(self) -> list[dict[str, Any]]:
        """Units that failed, or wait: as recorded, each with ``why`` in a line; without those that a gate stopped."""
        found = [u for u in self.units if u["name"] not in self.inputs and u.get("status") in ("failed", "pending")]
        return [{**u, "why": _first_line(u.get("reason")) or "it has not run"} for u in found]

    def unit(self, name: str) -> dict[str, Any] | None:
        """The runner's record of a unit."""
        return self._by_name.get(name)

    def path(self, unit: str, file: str) -> Path | None:
        """A file of a unit's artifact, or None where the artifact or the file is absent (or discarded)."""
        folder = self.inputs.get(unit)
        path = folder / file if folder is not None else None
        return path if path is not None and path.is_file() else None

    def json(self, unit: str, file: str) -> Any:
        """A JSON file, or None where it is absent.

        Raises:
            MechstudyError: the file is not JSON.
        """
        return self._read(unit, file, "json")

    def rows(self, unit: str, file: str) -> list[dict[str, Any]]:
        """Rows of a CSV or JSON Lines file; empty where it is absent."""
        return self._read(unit, file, "jsonl" if file.endswith(".jsonl") else "csv") or []

    def _read_uncached(self, unit: str, file: str, kind: str) -> Any:
        path = self.path(unit, file)
        if path is None:
            return None
        try:
            text = path.read_text(encoding="utf-8")
            if kind == "json":
                return json.loads(text)
            if kind == "jsonl":
                return [json.loads(line) for line in text.split("\n") if line.strip()]
            return list(csv.DictReader(io.StringIO(text, newline="")))
        except (ValueError, csv.Error) as error:
            raise MechstudyError(
                f"{file} cannot be read: {error}",
                where=unit,
                fix="run `mechstudy verify`, then run the unit again",
            ) from error

    def evaluation(self, layer: int) -> dict[str, Any]:
        """evaluation.json of a layer's dictionary with its timing.json; empty where it did not run."""
        unit = f"train[{layer}]"
        found = self.json(unit, "evaluation.json")
        return {**(self.json(unit, "timing.json") or {}), **found} if found else {}

    def variant(self, layer: int, name: str) -> dict[str, Any]:
        """evaluation.json of a variant with ``agreement`` (agreement.json); empty where it did not run."""
        unit = f"variant[{layer}:{name}]"
        found = self.json(unit, "evaluation.json")
        return {"agreement": self.json(unit, "agreement.json"), **found} if found else {}

    def why_absent(self, unit: str) -> str:
        """One sentence for a page about what is not there: the gate, the unit's status, or that it never ran."""
        phase, key = parse_unit(unit)
        if phase in ("attribute", "intervene", "capture") and key in self.behaviours:
            summary = self.json(f"baseline[{key}]", "summary.json")
            gate = (summary or {}).get("gate") or {}
            if summary and gate.get("passed") is False and gate.get("on_fail") != "continue":
                accuracy = [
                    f"{s.get('accuracy', 0):.0%} on {name}" for name, s in (summary.get("splits") or {}).items()
                ]
                return (
                    "Stopped at the baseline gate: the model does not do this behaviour well enough to study it "
                    f"(accuracy {' and '.join(accuracy)}; the gate asks for "
                    f"{gate.get('min_accuracy', float('nan')):.0%})."
                )
        record = self.unit(unit)
        if record is None and phase in _OF_GRAPHS and self.no_graphs:
            return f"Left out: {self.no_graphs}."
        if record is None:
            return f"The study has no unit {unit}, or it has not run."
        reason = record.get("reason") or record.get("error") or record.get("message")
        if unit in self.inputs:
            return f"The artifact of {unit} holds no such file: it was discarded or not asked for."
        status, told = record.get("status") or "not run", _first_line(reason).rstrip(".")
        if status == "failed":
            return f"{unit} failed{': ' + told if told else ''}."
        return f"{unit} is {status}{': ' + told if told else ''}."


def _first_line(text: Any) -> str:
    return (str(text or "").strip().splitlines() or [""])[0]


def parse_unit(name: str) -> tuple[str, str | None]:
    """`train[12]` -> (`train`, `12`); `model` -> (`model`, None). `train[layer=12]` reads as `train[12]`."""
    match = _UNIT.match(name)
    if match is None:
        return name, None
    key = match["key"]
    return match["phase"], re.sub(r"^[a-z_]+=", "", key) if key is not None else None


def real(value: Any) -> float | None:
    """A CSV or JSON cell as a float; None where it is empty, null or not finite."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if result == result and abs(result) != float("inf") else None
