"""Retention: each phase's default, the study's override, and what runs do with it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from mechstudy.machine.runtime_options import RunOptions
from mechstudy.planning.opened_study import open_study
from mechstudy.runner.run import Run
from mechstudy.study.phases import registry
from mechstudy.study.phases.capture import CorpusCapturePhase, PromptCapturePhase
from mechstudy.study.study import StorageConfig
from tests.support.toy_units import calls, unit


def test_phases_that_are_not_kept_name_their_payload():
    assert len(registry.phases()) == 15
    assert all(phase.payload for phase in registry.phases() if phase.retention != "keep")


def test_prompt_and_corpus_activations_have_their_own_retention():
    prompts = registry.phase_of("capture", {"positions": "last-5"})
    corpus = registry.phase_of("capture", {"seed": 1})
    assert (prompts.retention, corpus.retention) == ("regenerate", "discard")


def test_the_study_overrides_the_retention_of_one_kind(here):
    units = open_study(here / "study.yaml", ["storage.retain.capture=keep"]).units
    by_phase = {phase: {u.retention for u in units if isinstance(u.phase, phase)}
                for phase in (CorpusCapturePhase, PromptCapturePhase)}  # fmt: skip
    assert by_phase == {CorpusCapturePhase: {"keep"}, PromptCapturePhase: {"regenerate"}}


def test_the_earlier_spelling_means_the_same():
    new, old = StorageConfig(retain={"capture": "keep"}), StorageConfig.model_validate({"activations": "keep"})
    assert new == old


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"retain": {"capure": "keep"}}, "no kind of artifact 'capure'"),
        ({"retain": {"intervene": "discard"}}, "intervene is always kept"),
        (
            {"retain": {"capture": "keep"}, "activations": "discard"},
            "activations says discard, and retain.capture keep",
        ),
        ({"activations": "maybe"}, "activations is keep or discard, not 'maybe'"),
    ],
)
def test_contradictory_retention_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        StorageConfig.model_validate(values)


def world(*, value: int = 0):
    """capture (its rows may go) -> train -> report; pages reads the rows too, and runs on whatever is there."""
    payload = {"entry": "payload", "retention": "regenerate", "payload": ("*.bin",)}
    return [
        unit("model"),
        unit("capture", ["model"], **payload),
        unit("train", ["capture"], entry="reads_payload"),
        unit("pages", ["capture", "train"], entry="reads_payload", optional_inputs=True, value=value),
        unit("report", ["capture", "train", "pages"], optional_inputs=True, reads_payload=False),
    ]


def test_regenerable_payload_stays_through_the_run(tmp_path):
    run = Run(tmp_path, world(), RunOptions())
    run.execute()
    artifact = run.evaluate().nodes["capture"].artifact
    assert artifact is not None and (artifact.path / "rows.bin").exists()


def test_forcing_the_report_rebuilds_no_payload(tmp_path):
    run = Run(tmp_path, world(), RunOptions())
    run.execute()
    run.folder.store.discard(run.evaluate().nodes["capture"].artifact, ["*.bin"])
    assert run.execute(force=["report"]).ran == ["report"]


def test_a_reader_with_optional_inputs_rebuilds_missing_payload(tmp_path):
    run = Run(tmp_path, world(), RunOptions())
    run.execute()
    run.folder.store.discard(run.evaluate().nodes["capture"].artifact, ["*.bin"])
    assert Run(tmp_path, world(value=1), RunOptions()).execute(["pages"]).ran == ["capture", "pages"]
    assert calls(tmp_path).count("train") == 1
