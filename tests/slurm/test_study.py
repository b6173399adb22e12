"""A whole study through Slurm: what comes out is what a run without Slurm makes, whatever happened on the way."""

from __future__ import annotations

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
    assert "19 of 19" in submitted.mechstudy("status")
    assert {"gres/gpu=2" in held for held in submitted.accounted("capture", "AllocTRES")} == {True}
    assert {"gres/gpu" in held for held in submitted.accounted("train", "AllocTRES")} == {False}


def test_a_unit_that_fails_is_named_with_its_fix_and_after_that_only_what_is_missing_runs(submitted, expected):
    digits = submitted.folder / "digits.jsonl"
    digits.write_text(prompts("12345678").replace('"1 then 2"', '"1 then 22"'))  # longer than its twin, in tokens
    with Publishes(submitted.run) as publishes:
        submitted.mechstudy("submit")
        submitted.wait()
        assert not submitted.is_complete()
        made = units(submitted.run)
        assert {"model", "corpus", "prompts[letters]"} <= made and not made & {"baseline[letters]", "report"}
        told = submitted.mechstudy("why", "prompts[digits]", code=None)
        assert "digits.jsonl:1" in told and "same number of tokens" in told
        assert "prompts[digits]" in submitted.mechstudy("why", "report", code=None)
        assert "digits.jsonl:1" in submitted.mechstudy("logs", "prompts[digits]")
        digits.write_text(prompts("12345678"))
        assert "model" not in submitted.mechstudy("resume").split()
        submitted.wait()
    submitted.assert_equals(expected)
    assert publishes.twice() == []
