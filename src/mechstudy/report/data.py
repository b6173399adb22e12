"""What a report is made of: a study's units with their files, any of which may be absent, and addresses of numbers.

A number's address is its unit, its file, and a JSON pointer into it (RFC 6901; in a CSV file: the row's id, the
column). Its handle is a hash of the address alone, so it is the same in every run and study.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechstudy.behaviours.metrics import DIFFERENCE
from mechstudy.circuits.config import no_graphs
from mechstudy.core.errors import MechstudyError
from mechstudy.corpus.bundled import foreign_text
from mechstudy.dictionaries.evaluation import loss_recovered
from mechstudy.features.asked_labels import AskedLabel
from mechstudy.monitoring.expected_usage import PhaseProfile
from mechstudy.monitoring.record import usage_file

# The files of an artifact that hold numbers of the pages; a full address may name any file.
FILES = (
    "model.json", "summary.json", "train.csv", "test.csv", "evaluation.json", "agreement.json", "scores.json",
    "verdict.json",
)  # fmt: skip
LOGS = ("scalars.jsonl", "timing.json", "tensorboard/")  # hold clock times, so they differ between equal runs
_ADDRESS = re.compile(r"(?P<unit>[^/\[#]+(\[[^\]]*\])?)/(?P<file>[^#]+)#(?P<pointer>(/.*)?)")


@dataclass(frozen=True)
class Address:
    """Where a number, or a group of them (a row, a test), is kept. An empty ``pointer`` is the whole file."""

    unit: str
    file: str
    pointer: str = ""

    def __str__(self) -> str:
        return f"{self.unit}/{self.file}#{self.pointer}"

    @property
    def handle(self) -> str:
        """Seven letters and digits."""
        digest = hashlib.sha256(str(self).encode()).digest()
        return base64.b32encode(digest)[:7].decode().lower()

    def below(self, *keys: str | int) -> Address:
        """The address of something inside."""
        return Address(self.unit, self.file, self.pointer + "".join(f"/{_escaped(key)}" for key in keys))


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
            path = None if self.folder is None else self.folder / file  # discarded files are absent too
            try:
                self._contents[file] = path and path.is_file() and _parsed(file, path.read_text(encoding="utf-8"))
            except (ValueError, csv.Error) as error:
                raise MechstudyError(
                    f"{file} cannot be read: {error}",
                    where=self.name,
                    fix="run `mechstudy verify`, then run the unit again",
                ) from error
        return self._contents[file]

    @property
    def metric(self) -> str:
        """What the unit's summary compares answers by."""
        return str(self.json("summary.json").get("metric") or DIFFERENCE)

    @property
    def evaluation(self) -> dict[str, Any]:
        """A dictionary's evaluation.json with its timing.json and ``agreement``; empty where it did not run."""
        evaluation = self.json("evaluation.json")
        beside = {**self.json("timing.json"), "agreement": self.json("agreement.json")}
        return evaluation and {**beside, **loss_recovered.checked(evaluation)}

    @property
    def done(self) -> bool:
        """Whether the unit finished."""
        return self.record.get("status") == "done"

    @property
    def reason(self) -> str:
        """The first line of why the unit failed or waits."""
        return next(iter(str(self.record.get("reason") or "").strip().splitlines()), "")

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

    Each of ``prompts``, ``baselines``, ``graphs``, ``interventions`` and ``verdicts`` has an entry for every behaviour,
    in the order of the study; one without a record stands for a unit that the study lacks.

    Attributes:
        study: the configuration, as plain JSON.
        units: all units, in the order in which the report lists them and their phases.
        dictionaries: by layer.
        variants: by (layer, name); other dictionaries of the layer's rows.
        profiles: what is expected of each phase's use of the machine, in order.
        edits: what a reader made of graphs (pins, groups, labels), by the graph's name: its slug, or the behaviour.
        asked: labels of features that an endpoint or others gave, by feature.
    """

    study: Mapping[str, Any]
    units: Sequence[UnitFiles]
    model: UnitFiles
    prompts: Mapping[str, UnitFiles]
    baselines: Mapping[str, UnitFiles]
    graphs: Mapping[str, UnitFiles]
    interventions: Mapping[str, UnitFiles]
    verdicts: Mapping[str, UnitFiles]
    dictionaries: Mapping[int, UnitFiles]
    variants: Mapping[tuple[int, str], UnitFiles]
    features: UnitFiles
    profiles: Mapping[str, PhaseProfile]
    edits: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, AskedLabel] = field(default_factory=dict)

    @property
    def behaviours(self) -> list[str]:
        """The behaviours studied."""
        return list(self.prompts)

    @property
    def has_usage(self) -> bool:
        """Whether usage was recorded beside any artifact."""
        return any(unit.folder is not None and usage_file(unit.folder).exists() for unit in self.units)

    @property
    def no_graphs(self) -> str | None:
        """Why the study leaves graphs out; None where it does not."""
        units = (*self.graphs.values(), self.features, *self.interventions.values(), *self.verdicts.values())
        if any(unit.record or unit.folder for unit in units) or not {"behaviours", "dictionaries"} <= self.study.keys():
            return None
        d, basis = self.study["dictionaries"], (self.study.get("attribution") or {}).get("basis")
        kind = str((d.get("architecture") or {}).get("kind"))
        return no_graphs(len(self.study["behaviours"]), basis, kind, str(d.get("site")))

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
        source = (self.study.get("model") or {}).get("source") or "unknown model"
        return str(self.model.json("model.json").get("name") or source)

    @property
    def foreign_corpus(self) -> str | None:
        """That the bundled corpus is another model's text, where the study uses it."""
        corpus, source = self.study.get("corpus") or {}, str((self.study.get("model") or {}).get("source") or "")
        return None if corpus.get("source") != "bundled" else foreign_text(source, self.model_name)

    @property
    def interval_name(self) -> str:
        """What intervals of interventions are called, by the study's ``interventions.ci``: ``95% CI``."""
        level = (self.study.get("interventions") or {}).get("ci") or 0.95
        return f"{100 * level:.4g}% CI"

    @property
    def seconds(self) -> float:
        """Wall time of all units, summed."""
        return float(sum(unit.record.get("seconds") or 0 for unit in self.units))


def parse_address(text: str) -> Address | None:
    """``train[3]/evaluation.json#/r2``; None where the text is no address."""
    match = _ADDRESS.fullmatch(text)
    return Address(match["unit"], match["file"], match["pointer"]) if match else None


def content_of(file: str, data: bytes) -> Any:
    """A file's content: JSON, or the rows of a CSV file by their ``id`` with numeric cells as numbers.

    Raises:
        ValueError: the file is not what its name says.
    """
    if not file.endswith(".csv"):
        return json.loads(data)
    rows = csv.DictReader(io.StringIO(data.decode(), newline=""))
    return {str(row.get("id", i)): {k: _cell(v) for k, v in row.items()} for i, row in enumerate(rows)}


def at(content: Any, pointer: str) -> Any:
    """The value at a pointer.

    Raises:
        KeyError: there is none.
    """
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        try:
            content = content[int(key)] if isinstance(content, list) else content[key]
        except (KeyError, IndexError, ValueError, TypeError):
            raise KeyError(pointer) from None
    return content


def addresses(unit: str, file: str, content: Any) -> Iterator[Address]:
    """The addresses of all values in a file, the whole file first."""
    stack = [(Address(unit, file), content)]
    while stack:
        address, value = stack.pop()
        yield address
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        stack.extend((address.below(key), item) for key, item in items)


def differences(before: Any, after: Any, pointer: str = "") -> list[tuple[str, Any, Any]]:
    """Pointer, value before and value after, of each value that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = list(dict.fromkeys([*before, *after]))
        pairs = [(f"{pointer}/{_escaped(key)}", before.get(key), after.get(key)) for key in keys]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(f"{pointer}/{i}", a, b) for i, (a, b) in enumerate(zip(before, after, strict=True))]
    else:
        return [] if before == after else [(pointer, before, after)]
    return [difference for where, a, b in pairs for difference in differences(a, b, where)]


def _escaped(key: str | int) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")


def _cell(text: str | None) -> Any:
    try:
        return float(text) if text else text
    except ValueError:
        return text
