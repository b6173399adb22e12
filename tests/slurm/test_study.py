"""A whole study through Slurm: what comes out is what a run without Slurm makes, whatever happened on the way."""

from __future__ import annotations

import json

import pytest

from tests.slurm.runs import Publishes, units
from tests.slurm.study import prompts

pytestmark = pytest.mark.slurm


def test_a_whole_study_ends_with_the_bytes_of_a_run_without_slurm(submitted, expected):
    with Publishes(submitted.run) as publishes:
        submitted.mechstudy("submit", "--set", "compute.slurm.phases={capture: {gpus: 2}}")
        assert submitted.left_behind() == []
        assert {row.state for row in submitted.queue()} <= {"PENDING", "RUNNING", "COMPLETING"}
        submitted.wait()
    submitted.assert_equals(expected)
    assert publishes.twice() == []
    assert "21 of 21" in submitted.mechstudy("status")
    assert {"gres/gpu=2" in held for held in submitted.accounted("capture", "AllocTRES")} == {True}
    assert {"gres/gpu" in held for held in submitted.accounted("train", "AllocTRES")} == {False}


def test_a_bad_behaviour_fails_alone_and_then_only_the_missing_runs(submitted, expected):
    digits = submitted.folder / "digits.jsonl"
    good = prompts("12345678")
    bad = good.replace('"1 then 2"', '"1 then 22"')  # longer than its twin, in tokens
    digits.write_text(bad)
    shown = submitted.mechstudy("submit", code=2)
    assert "digits.jsonl:1" in shown and submitted.queue() == [] and not submitted.run.exists()
    digits.write_text(good)
    with Publishes(submitted.run) as publishes:
        submitted.mechstudy("submit")
        digits.write_text(bad)  # while the model's job is waited for
        submitted.wait()
        lost = {f"{phase}[digits]" for phase in ("prompts", "baseline", "capture", "attribute", "intervene", "verdict")}
        shown = submitted.mechstudy("status", "--json")
        names = {unit["name"] for unit in json.loads(shown[shown.index("{") : shown.rindex("}") + 1])["units"]}
        assert units(submitted.run) == names - lost
        assert (submitted.run / "report" / "index.html").is_file(), "of what is there"
        shown = submitted.mechstudy("why", "prompts[digits]", code=None)
        assert "digits.jsonl was changed since the study was submitted" in shown
        assert "fix prompts[digits]" in submitted.mechstudy("why", "report", code=None)
        assert "digits.jsonl was changed" in submitted.mechstudy("logs", "prompts[digits]")
        assert "digits.jsonl:1" in submitted.mechstudy("resume", code=2)
        digits.write_text(good)
        assert "model" not in submitted.mechstudy("resume").split()
        submitted.wait()
    submitted.assert_equals(expected)
    assert "21 of 21" in submitted.mechstudy("status")
    assert publishes.twice() == []
