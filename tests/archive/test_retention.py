"""How long each kind of artifact is kept: one table, the study's own word over it, and what runs make of it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from mechstudy.runner.run import Run
from mechstudy.runner.run_unit import Options
from mechstudy.study.retention import RULES, rule_of
from mechstudy.study.study import StorageConfig
from mechstudy.study.units import VERSIONS
from tests.support.toy_units import calls, unit


def test_every_phase_has_a_row_and_nothing_that_may_go_is_without_a_pattern():
    assert set(VERSIONS) <= set(RULES)
    assert all(rule.payload for rule in RULES.values() if rule.retention != "keep")


def test_activations_of_prompts_and_of_the_corpus_have_rows_of_their_own():
    assert rule_of("capture", {"seed": 1}).retention == "discard"
    assert rule_of("capture", {"positions": "last-5"}).retention == "regenerate"


def test_the_study_says_otherwise_and_the_earlier_way_of_saying_it_is_the_same_thing():
    new, old = StorageConfig(retain={"capture": "keep"}), StorageConfig.model_validate({"activations": "keep"})
    assert new == old and rule_of("capture", {}, new.retain).retention == "keep"
    assert rule_of("capture", {}, new.retain).payload == RULES["capture"].payload


@pytest.mark.parametrize(
    ("given", "message"),
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
def test_what_cannot_be_meant_is_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        StorageConfig.model_validate(given)


def world(*, value: int = 0):
    """capture (its rows may go) -> train -> report; pages reads the rows too, and runs on whatever is there."""
    payload = {"entry": "payload", "retention": "regenerate", "discard_patterns": ("*.bin",)}
    return [
        unit("model"),
        unit("capture", ["model"], **payload),
        unit("train", ["capture"], entry="reads_payload"),
        unit("pages", ["capture", "train"], entry="reads_payload", optional_inputs=True, value=value),
        unit("report", ["capture", "train", "pages"], optional_inputs=True, reads_payload=False),
    ]


def test_what_regenerates_stays_through_the_run(tmp_path):
    run = Run(tmp_path, world(), Options())
    run.execute()
    artifact = run.evaluate().nodes["capture"].artifact
    assert artifact is not None and (artifact.path / "rows.bin").exists()


def test_a_reader_with_optional_inputs_makes_payload_that_is_gone_again_and_the_report_does_not(tmp_path):
    run = Run(tmp_path, world(), Options())
    run.execute()
    artifact = run.evaluate().nodes["capture"].artifact
    run.folder.store.discard(artifact, ["*.bin"])
    assert run.execute(force=["report"]).ran == ["report"]
    assert Run(tmp_path, world(value=1), Options()).execute(["pages"]).ran == ["capture", "pages"]
    assert calls(tmp_path).count("train") == 1
