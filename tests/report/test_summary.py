"""The summary of a run and its findings."""

# ruff: noqa: RUF001 - the typography of the findings is under test

from __future__ import annotations

import json

import pytest

from mechstudy.report.summary import build_summary, findings
from tests.support.report_fixture import BEHAVIOURS, STOPPED, FakeStudy
from tests.support.report_graphs import LAYERS


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeStudy:
    return FakeStudy(tmp_path_factory.mktemp("study"), prompts=1, big=False, features_per_layer=12)


def test_the_summary_has_exactly_the_agreed_keys(fake: FakeStudy) -> None:
    summary = build_summary(fake.data, 12.5, 10**9)
    assert set(summary) == {
        "model", "wall_seconds", "peak_rss_bytes", "baseline", "dictionaries", "graphs", "interventions", "edges",
        "verdicts", "units", "findings",
    }  # fmt: skip
    behaviour = BEHAVIOURS[0]
    assert set(summary["baseline"][behaviour]["test"]) == {"n", "accuracy", "mean_logit_difference", "ci95", "passed"}
    assert set(summary["dictionaries"]) == {str(layer) for layer in LAYERS}
    assert set(summary["dictionaries"]["10"]) == {
        "kind", "activation", "d_in", "d_sae", "k", "l0", "fvu", "r2", "dead_share", "ce_loss_recovered", "train_rows",
        "rows_per_second",
    }  # fmt: skip
    assert set(summary["graphs"][behaviour]) == {
        "n_prompts", "nodes", "edges", "replacement", "completeness", "replacement_pruned", "completeness_pruned",
        "replacement_among_rows", "completeness_among_rows",
        "conservation_residual_max",
    }  # fmt: skip
    assert set(summary["interventions"][behaviour]["ablation"]) == {
        "n", "effect", "ci95", "control_effect", "control_ci95", "p_adjusted",
    }  # fmt: skip
    edges = {"n", "spearman_frozen", "spearman_direct_live", "spearman_total_live"}
    assert set(summary["edges"][behaviour]) == {*edges, "qk"}
    assert set(summary["units"]["model"]) == {"seconds", "status", "artifact"}
    assert STOPPED in summary["baseline"] and STOPPED not in summary["graphs"]
    json.dumps(summary, allow_nan=False)


def test_findings_state_effect_interval_and_control(fake: FakeStudy) -> None:
    summary = build_summary(fake.data, 1.0, 1)
    lines = [finding["text"] for finding in summary["findings"]]
    assert findings(summary) == [f"{f['text']} [{f['number']}]" for f in summary["findings"]]
    assert (
        "subject_verb_agreement: ablating the top 10 features lowers the logit difference by 2.31 [1.98, 2.64] on 100 "
        "unseen prompts; matched controls change it by 0.02 [−0.04, 0.08]"
    ) in lines
    assert any(line.startswith(f"{STOPPED}:") and "below the gate" in line for line in lines)
    assert any("(not shown)" in line for line in lines)


def test_timing_joins_the_evaluation(fake: FakeStudy) -> None:
    summary = build_summary(fake.data, 1.0, 1)
    assert summary["dictionaries"]["10"]["rows_per_second"] == 19_400.0


def test_a_loss_recovered_that_is_no_share_is_reported_as_undefined_with_the_losses(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    study = FakeStudy(tmp_path_factory.mktemp("undefined"), prompts=1, big=False, features_per_layer=12)
    layer = LAYERS[0]
    file = study.data.dictionaries[layer].folder / "evaluation.json"
    foreign = {"ce_model": 3.41, "ce_dictionary": 3.2, "ce_zero": 3.38, "ce_loss_recovered": 1.31}
    file.write_text(json.dumps(json.loads(file.read_text()) | foreign))
    study.study["corpus"] = {"source": "bundled"}
    study.study["model"] = {"source": "hf:other/model"}
    summary = build_summary(study.data, 1.0, 1)
    scores = summary["dictionaries"][str(layer)]
    assert scores["ce_loss_recovered"] is None
    assert scores["ce_loss_recovered_undefined"] == "zeros at the site lower the loss"
    assert (scores["ce_model"], scores["ce_dictionary"], scores["ce_zero"]) == (3.41, 3.2, 3.38)
    [line] = [f["text"] for f in summary["findings"] if "dictionaries: held-out R2" in f["text"]]
    assert f"(undefined in layer {layer})" in line and "1.31" not in line
