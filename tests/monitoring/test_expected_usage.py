"""``compute.expected_usage``: from the study to the usage file and to the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.monitoring.bottlenecks import by_phase
from mechstudy.monitoring.record import Sample, Session, read_usage, to_lines
from mechstudy.runner.run import Run
from mechstudy.study.phases import registry
from mechstudy.study.study import load_study
from tests.support import toy_units
from tests.support.storage_world import make_folder, open_toy
from tests.support.toy_units import unit

PROFILES = registry.usage_profiles()


def session(busy: float, own: tuple[float, float] | None, **changes) -> Session:
    samples = [Sample(100.0, cpu=100.0 * busy)]
    return Session(**{"unit": "train[0]", "phase": "train", "cores": 1, "expected": own, "samples": samples, **changes})


@pytest.mark.parametrize(
    ("busy", "own", "verdict"),
    [
        (0.5, None, "low"),
        (0.5, (40.0, 60.0), "as expected"),
        (0.9, (40.0, 60.0), "above"),
        (0.9, None, "as expected"),
        (0.9, (95.0, 100.0), "low"),
    ],
)
def test_the_studys_own_range_overrides_the_usual_one(busy, own, verdict):
    [phase] = by_phase([[session(busy, own)]], {}, PROFILES)
    assert phase.verdict == verdict
    if own is not None:
        assert str(phase.expected) == f"{own[0]:.0f}%-{own[1]:.0f}% of its threads"


def test_phases_without_a_usual_range_use_that_of_the_last_session():
    for own in (None, (10.0, 20.0)):
        [phase] = by_phase([[session(0.5, own, unit="report", phase="report")]], {}, PROFILES)
        assert (phase.expected is None) == (own is None)
    old = session(0.5, (1.0, 2.0), unit="train[1]", started="2026-01-01T00:00:00+00:00")
    new = session(0.5, (40.0, 60.0), started="2026-01-02T00:00:00+00:00")
    for order in ([[old], [new]], [[new], [old]]):
        [phase] = by_phase(order, {}, PROFILES)
        assert phase.verdict == "as expected"


def test_the_range_is_recorded_and_changes_no_artifact(tmp_path):
    ranges = {"train": (40.0, 60.0)}
    units = [unit("train[0]"), unit("report", ["train[0]"])]
    Run(tmp_path / "ranged", units, RunOptions(expected_usage=ranges)).execute()
    Run(tmp_path / "plain", units).execute()
    assert toy_units.sums(tmp_path / "ranged") == toy_units.sums(tmp_path / "plain")
    sessions = {f.parent.name: read_usage(f)[0] for f in (tmp_path / "ranged" / "artifacts").glob("*/*.usage.jsonl")}
    assert {phase: of.expected and tuple(of.expected) for phase, of in sessions.items()} == {
        "train": (40.0, 60.0), "report": None,
    }  # fmt: skip


def test_the_range_survives_the_study_file_and_a_frozen_submission(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "here")
    text = (folder / "study.yaml").read_text()
    (folder / "study.yaml").write_text(
        text.replace("{device: cpu}", "{device: cpu, expected_usage: {train: [40, 60]}}")
    )
    options = open_toy(folder, monkeypatch).options
    assert options.expected_usage == {"train": (40.0, 60.0)}
    again = RunOptions.from_json(options.as_json())
    assert {k: tuple(v) for k, v in again.expected_usage.items()} == {"train": (40.0, 60.0)}


@pytest.mark.parametrize(
    ("value", "message"), [("{trian: [40, 60]}", "no phase 'trian'"), ("{train: [60, 40]}", "no range"),
                        ("{train: [0.4, 160]}", "no range")],
)  # fmt: skip
def test_an_invalid_range_is_refused_at_its_line(tmp_path, value, message):
    folder = make_folder(tmp_path / "here")
    with pytest.raises(MechstudyError, match=message):
        load_study(folder / "study.yaml", [f"compute.expected_usage={value}"])


def test_older_usage_files_have_no_range(tmp_path: Path):
    lines = to_lines([session(0.5, None)]).replace('"expected":null,', "")
    (tmp_path / "a").write_text(lines)
    assert read_usage(tmp_path / "a")[0].expected is None
