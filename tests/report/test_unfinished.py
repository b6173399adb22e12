"""What a report says of units that failed or wait and of what a study leaves out, and where it learns so."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechstudy.core.jsonio import read_json
from mechstudy.core.progress import NullProgress
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.report.pages import overview_page, pipeline
from mechstudy.report.site import Site
from mechstudy.runner.run import Run
from mechstudy.study.study import Study
from tests.support.report_fixture import TITLES, report_data
from tests.support.toy_units import unit

DONE = {"status": "done", "seconds": 1.0}


def titled(units: list[dict]) -> list[dict]:
    return [{**u, "title": TITLES[u["name"].partition("[")[0]]} for u in units]


def overview(out: Path, study: dict, units: list[dict]) -> str:
    data = report_data(study, {}, titled(units))
    out.mkdir(exist_ok=True)
    overview_page(Site(data, out), {}, pipeline(data.units))
    return (out / "index.html").read_text()


def test_the_overview_names_what_failed_and_what_waits_with_the_reason(tmp_path):
    failed = {"name": "attribute[b]", "status": "failed", "reason": "the disk is full\nand more"}
    waits = {"name": "intervene[b]", "status": "pending", "reason": "waits for attribute[b], which failed"}
    html = overview(tmp_path, {"name": "s", "behaviours": [{"name": "b"}]}, [{"name": "model", **DONE}, failed, waits])
    assert '<li class="failed">' in html and "0 of 1, failed" in html and "0 of 1, pending" in html
    assert "Not finished" in html and "the disk is full" in html and "and more" not in html
    assert "intervene[b] is pending: waits for attribute[b], which failed." in html
    assert "mechstudy status STUDY" in html and "log.txt" in html


def test_the_overview_of_a_whole_study_has_nothing_unfinished(tmp_path):
    stopped = {"name": "attribute[b]", "status": "stopped", "reason": "a gate"}
    html = overview(tmp_path, {"name": "s", "behaviours": [{"name": "b"}]}, [{"name": "model", **DONE}, stopped])
    assert "Not finished" not in html and "0 of 1, stopped" in html


def test_variants_count_among_the_dictionaries():
    names = ("train[3]", "train[5]", "variant[3:again]", "variant[5:again]")
    [strip] = pipeline(report_data({}, {}, titled([{"name": name, **DONE} for name in names])).units)
    assert (strip["label"], strip["done"], strip["n"], strip["seconds"]) == ("Dictionaries", 4, 4, 4.0)


def test_the_pipeline_has_the_order_of_the_units():
    names = ("model", "prompts[a]", "baseline[a]", "prompts[b]", "baseline[b]", "corpus")
    data = report_data({}, {}, titled([{"name": name, **DONE} for name in names]))
    assert [step["label"] for step in pipeline(data.units)] == ["Model", "Prompts", "Baseline", "Corpus"]


@pytest.mark.parametrize(
    ("behaviours", "kind", "site", "reason"),
    [
        ([], "transcoder", "mlp_out", "no behaviours are named"),
        (
            ["country_capital"],
            "sae",
            "mlp_act",
            "graphs need transcoders or SAEs of resid_post, resid_pre, mlp_out, attn_out, "
            "and these are SAEs of mlp_act (attribution.basis: neurons gives graphs without dictionaries)",
        ),
        (["country_capital"], "sae", "resid_post", None),
        (["country_capital"], "transcoder", "mlp_out", None),
    ],
)
def test_the_report_leaves_out_what_the_study_does(tmp_path, behaviours, kind, site, reason):
    study = Study.model_validate(
        {
            "name": "s",
            "model": {"source": "path:m"},
            "behaviours": [{"name": name} for name in behaviours],
            "dictionaries": {"architecture": {"kind": kind}, "site": site},
        }
    )
    data = report_data(study.canonical(), {}, [{"name": "model", **DONE}])
    assert data.no_graphs == study.no_graphs == reason
    html = overview(tmp_path, study.canonical(), [{"name": "model", **DONE}])
    assert ("are left out" in html, "Claims that hold" in html) == (reason is not None, reason is None)
    if reason is not None:
        assert data.why_no_circuit(data.features) == f"Left out: {reason}."


# ------------------------------------------------------------------------------ what a run hands to its report


def run(folder: Path, entry: str, *, targets=None, force=()) -> None:
    units = [
        unit("model"),
        unit("attribute[b]", ["model"], entry=entry),
        unit("intervene[b]", ["attribute[b]"]),
        unit("report", ["model", "attribute[b]", "intervene[b]"], entry="says_what_is_absent", optional_inputs=True),
    ]
    Run(folder, units, RunOptions(), NullProgress()).execute(targets, force=force)


def absent(folder: Path) -> dict[str, tuple[str, str | None]]:
    [file] = (folder / "artifacts" / "report").glob("*/absent.json")
    return {entry["name"]: (entry["status"], entry["reason"]) for entry in read_json(file)}


def test_a_report_learns_what_failed_and_waits_and_when_that_changes(tmp_path):
    run(tmp_path, "refuses")
    waits = ("pending", "waits for attribute[b], which failed")
    assert absent(tmp_path) == {"attribute[b]": ("failed", "the toy is broken"), "intervene[b]": waits}
    run(tmp_path, "crashes")
    assert absent(tmp_path)["attribute[b]"] == ("failed", "ZeroDivisionError: one over nothing")


def test_a_report_made_again_by_itself_still_says_what_failed(tmp_path):
    run(tmp_path, "refuses")
    before = absent(tmp_path)
    run(tmp_path, "refuses", targets=["report"], force=["report"])
    assert absent(tmp_path) == before
    assert read_json(tmp_path / "progress.json")["units"]["attribute[b]"]["status"] == "failed"


def test_what_has_not_run_is_pending_without_a_reason(tmp_path):
    run(tmp_path, "digest", targets=["model"])
    run(tmp_path, "digest", targets=["report"], force=["report"])
    assert absent(tmp_path) == {"attribute[b]": ("pending", None), "intervene[b]": ("pending", None)}
