"""What the report says of a verdict: its page, the overview, the summary and its findings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mechstudy.report.pages import build_report
from mechstudy.report.summary import build_summary
from mechstudy.report.verdict_page import curve_chart
from mechstudy.verdict import Variant, Verdict, VerdictConfig, verify
from tests.support.interventions_world import pairs, transcoders
from tests.support.report_fixture import BEHAVIOURS, FakeStudy
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def found() -> Verdict:
    config = VerdictConfig(n_discovery=8, n_samples=8, steps=2, n_random=2, resamples=20, bootstrap=200)
    others = {"<b>other</b>": pairs(6, seed=2)}
    model = tiny_model()
    variants = {
        "again": Variant(transcoders(model, seed=1)),
        "frozen-encoder": Variant(transcoders(model, seed=2), frozen=True),
    }
    return verify(
        model, transcoders(model), pairs(8), pairs(8, seed=1), config, behaviour=BEHAVIOURS[0], others=others,
        variants=variants,
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(found: Verdict, tmp_path_factory: pytest.TempPathFactory) -> FakeStudy:
    root = tmp_path_factory.mktemp("study")
    return FakeStudy(root, prompts=1, big=False, features_per_layer=12, verdict=found.record)


def test_the_summary_has_the_verdict_and_a_finding_says_it(study: FakeStudy, found: Verdict) -> None:
    summary = build_summary(study.data, 1.0, 1)
    verdict = summary["verdicts"][BEHAVIOURS[0]]
    assert (verdict["outcome"], verdict["size"]) == (found.outcome, found.circuit.size)
    assert set(verdict["criteria"]) == {c.name for c in found.criteria}
    assert list(summary["verdicts"]) == [BEHAVIOURS[0]]
    [line] = [f["text"] for f in summary["findings"] if f["text"].startswith(f"{BEHAVIOURS[0]}: verdict")]
    assert f"verdict: {found.outcome} (" in line and f"{found.circuit.size} of {len(found.nodes)} nodes carry" in line


def test_the_page_shows_every_criterion_part_and_rival(
    study: FakeStudy, found: Verdict, quick_bundle: None, tmp_path: Path
) -> None:
    build_report(study.data, tmp_path / "report")
    slug = BEHAVIOURS[0]
    page = (tmp_path / "report" / f"verdict-{slug}.html").read_text(encoding="utf-8")
    for criterion in found.criteria:
        assert re.search(rf"<th scope=\"row\">{criterion.name.capitalize()}\b", page), criterion.name
        assert criterion.question in page
    for group in found.parts["group"]:
        assert group in page
    for row in found.rivals.drop_nulls("ahead").to_dicts():
        assert re.search(rf"<th scope=\"row\">{row['circuit']}\b.*?{row['ahead']:.2f}", page, re.DOTALL), row
    assert 'scope="row">again' in page and 'scope="row">frozen-encoder (control)' in page
    for one in found.variants:
        assert f"{one.features_again} of {one.features}" in page and f"{one.others_again} of {one.others}" in page
    assert "adjusted over the groups" in page and "clusters of prompts" in page
    assert "<b>other</b>" not in page and "&lt;b&gt;" in page.lower(), "what a study is called is escaped"
    story = (tmp_path / "report" / f"story-{slug}.html").read_text(encoding="utf-8")
    for criterion in found.criteria:
        shown = "Not asked" if criterion.state == "not measured" else f">{criterion.state}</span>"
        assert shown in story, criterion
    assert story.count(">met</span>") == sum(c.state == "met" for c in found.criteria)
    assert f"{len(found.members)} nodes by position and layer" in story and 'class="members"' in story
    assert "<b>other</b>" not in story
    overview = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert f"verdict-{slug}.html" in overview and f"story-{slug}.html" in overview


def test_the_curve_has_the_circuits_size_where_no_point_of_it_is(found: Verdict) -> None:
    curve, total = found.record["curve"], found.record["n_nodes"]
    size = next(k for k in range(1, total) if k not in {row["k"] for row in curve})
    drawn = curve_chart(curve, size, "95% CI").to_dict()
    lines = [layer for layer in drawn["layer"] if layer["mark"]["type"] == "rule"]
    places = [
        row["fraction"] for layer in lines for row in drawn["datasets"][layer["data"]["name"]] if "fraction" in row
    ]
    assert places == [pytest.approx(size / total)]
    assert "4c78a8" not in str(drawn)
