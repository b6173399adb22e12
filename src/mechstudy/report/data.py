"""What a report is made of: a study's units with their files, by what they hold; any of them may be absent."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechstudy.circuits.config import no_graphs
from mechstudy.core.errors import MechstudyError
from mechstudy.monitoring.expected_usage import PhaseProfile
from mechstudy.report.numbers import Address


@dataclass(frozen=True, eq=False)
class UnitFiles:
    """A unit: its name (which handles are made from), its artifact's folder, and the runner's record of it.

    Attributes:
        name: the unit's name.
        folder: None where the artifact is absent.
        record: {phase, title, status, reason, artifact, id, seconds, started, finished, peak_rss_bytes,
            files{name: size}, version, spec, inputs, provenance}; what is missing shows as n/a. ``title`` names the
            unit's place in the overview's pipeline; without it the unit is not in it. Empty: the study has no such
            unit, or it has not run.
    """

    name: str
    folder: Path | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    _contents: dict[str, Any] = field(default_factory=dict, repr=False)

    def path(self, file: str) -> Path | None:
        """A file of the artifact, or None where it is absent or discarded."""
        path = self.folder / file if self.folder is not None else None
        return path if path is not None and path.is_file() else None

    def json(self, file: str) -> dict[str, Any]:
        """The object in a JSON file; empty where the file is absent.

        Raises:
            MechstudyError: the file is not JSON.
        """
        return self._read(file) or {}

    def rows(self, file: str) -> list[dict[str, Any]]:
        """Rows of a CSV or JSON Lines file; empty where it is absent.

        Raises:
            MechstudyError: the file is not what its name says.
        """
        return self._read(file) or []

    def address(self, file: str, pointer: str = "") -> Address:
        """The address of a number in one of the files."""
        return Address(self.name, file, pointer)

    def _read(self, file: str) -> Any:
        if file not in self._contents:
            path = self.path(file)
            try:
                self._contents[file] = None if path is None else _parsed(file, path.read_text(encoding="utf-8"))
            except (ValueError, csv.Error) as error:
                raise MechstudyError(
                    f"{file} cannot be read: {error}",
                    where=self.name,
                    fix="run `mechstudy verify`, then run the unit again",
                ) from error
        return self._contents[file]

    @property
    def evaluation(self) -> dict[str, Any]:
        """A dictionary's evaluation.json with its timing.json and ``agreement``; empty where it did not run."""
        evaluation = self.json("evaluation.json")
        return evaluation and {**self.json("timing.json"), "agreement": self.json("agreement.json"), **evaluation}

    @property
    def done(self) -> bool:
        """Whether the unit finished."""
        return self.record.get("status") == "done"

    @property
    def reason(self) -> str:
        """The first line of why the unit failed or waits."""
        lines = str(self.record.get("reason") or self.record.get("error") or "").strip().splitlines()
        return lines[0] if lines else ""

    @property
    def why_absent(self) -> str:
        """One sentence for a page about what is not there."""
        if not self.record:
            return f"The study has no unit {self.name}, or it has not run."
        if self.folder is not None:
            return f"The artifact of {self.name} holds no such file: it was discarded or not asked for."
        status = self.record.get("status") or "not run"
        reason = self.reason.rstrip(".")
        return f"{self.name} {'' if status == 'failed' else 'is '}{status}{': ' + reason if reason else ''}."


def _parsed(file: str, text: str) -> Any:
    if file.endswith(".csv"):
        return list(csv.DictReader(io.StringIO(text, newline="")))
    if file.endswith(".jsonl"):
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    return json.loads(text)


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """A study's configuration and its units.

    Each of ``prompts``, ``baselines``, ``graphs`` and ``interventions`` has an entry for every behaviour, in the
    order of the study; one without a record stands for a unit that the study lacks.

    Attributes:
        study: the configuration, as plain JSON.
        units: all units, in the order in which the report lists them and their phases.
        model: of model.json.
        prompts: behaviour -> its prompt pairs.
        baselines: behaviour -> its baseline.
        graphs: behaviour -> its attribution graphs.
        interventions: behaviour -> its interventions.
        dictionaries: layer -> its dictionary.
        variants: (layer, name) -> another dictionary of the layer's rows.
        features: of features.json.
        profiles: what is expected of each phase's use of the machine, in order.
    """

    study: Mapping[str, Any]
    units: Sequence[UnitFiles] = ()
    model: UnitFiles
    prompts: Mapping[str, UnitFiles] = field(default_factory=dict)
    baselines: Mapping[str, UnitFiles] = field(default_factory=dict)
    graphs: Mapping[str, UnitFiles] = field(default_factory=dict)
    interventions: Mapping[str, UnitFiles] = field(default_factory=dict)
    dictionaries: Mapping[int, UnitFiles] = field(default_factory=dict)
    variants: Mapping[tuple[int, str], UnitFiles] = field(default_factory=dict)
    features: UnitFiles
    profiles: Mapping[str, PhaseProfile] = field(default_factory=dict)

    @property
    def behaviours(self) -> list[str]:
        """The behaviours studied."""
        return list(dict.fromkeys([*self.prompts, *self.baselines, *self.graphs, *self.interventions]))

    @property
    def no_graphs(self) -> str | None:
        """Why the study leaves graphs out; None where it does not."""
        behaviours, dictionaries = self.study.get("behaviours"), self.study.get("dictionaries")
        units = (*self.graphs.values(), self.features, *self.interventions.values())
        if any(unit.record or unit.folder for unit in units):
            return None
        if not isinstance(behaviours, (list, tuple)) or not isinstance(dictionaries, dict):
            return None
        return no_graphs(len(behaviours), str((dictionaries.get("architecture") or {}).get("kind")))

    def unfinished(self) -> list[UnitFiles]:
        """Units that failed or wait, without those that a gate stopped."""
        return [u for u in self.units if u.folder is None and u.record.get("status") in ("failed", "pending")]

    def why_no_circuit(self, unit: UnitFiles, behaviour: str | None = None) -> str:
        """`UnitFiles.why_absent` of graphs, features or interventions, with the gate that stopped a behaviour."""
        summary = self.baselines[behaviour].json("summary.json") if behaviour is not None else {}
        gate = summary.get("gate") or {}
        if gate.get("passed") is False and gate.get("on_fail") != "continue":
            accuracy = [f"{s.get('accuracy', 0):.0%} on {name}" for name, s in (summary.get("splits") or {}).items()]
            return (
                "Stopped at the baseline gate: the model does not do this behaviour well enough to study it "
                f"(accuracy {' and '.join(accuracy)}; the gate asks for {gate.get('min_accuracy', float('nan')):.0%})."
            )
        if not unit.record and self.no_graphs:
            return f"Left out: {self.no_graphs}."
        return unit.why_absent

    @property
    def model_name(self) -> str:
        """The model by its artifact, or as the study names it where that is absent."""
        model = self.study.get("model")
        if isinstance(model, dict):
            model = model.get("source") or model.get("name") or model.get("path")
        return str(self.model.json("model.json").get("name") or model or "unknown model")

    @property
    def seconds(self) -> float:
        """Wall time of all units, summed."""
        return float(sum(unit.record.get("seconds") or 0 for unit in self.units))
