"""What a report says of units that failed or wait, of what a study leaves out, and who tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechstudy.core.jsonio import read_json
from mechstudy.core.progress import NullProgress
from mechstudy.report.build import _pages, _phases
from mechstudy.report.pages import overview_page
from mechstudy.report.site import Site
from mechstudy.report.source import Source
from mechstudy.runner.run import Run
from mechstudy.runner.run_unit import Options
from mechstudy.study.study import Study
from tests.support.toy_units import unit

DONE = {"status": "done", "seconds": 1.0}


def overview(out: Path, study: dict, units: list[dict]) -> str:
    source = Source(study, {}, units)
    out.mkdir(exist_ok=True)
    overview_page(source, Site(source, out, _pages(source)), {}, _phases(source))
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
    [strip] = _phases(Source({}, {}, [{"name": name, "phase": name.partition("[")[0], **DONE} for name in names]))
    assert (strip["label"], strip["done"], strip["n"], strip["seconds"]) == ("Dictionaries", 4, 4, 4.0)


@pytest.mark.parametrize(
    ("behaviours", "kind", "told"),
    [
        ([], "transcoder", "no behaviours are named"),
        (["country_capital"], "sae", "graphs need transcoders, and these dictionaries are SAEs"),
        (["country_capital"], "transcoder", None),
    ],
)
def test_the_report_leaves_out_what_the_study_does(tmp_path, behaviours, kind, told):
    study = Study.model_validate(
        {
            "name": "s",
            "model": {"source": "path:m"},
            "behaviours": [{"name": name} for name in behaviours],
            "dictionaries": {"architecture": {"kind": kind}},
        }
    )
    source = Source(study.canonical(), {}, [{"name": "model", **DONE}])
    assert source.no_graphs == study.no_graphs == told
    html = overview(tmp_path, study.canonical(), [{"name": "model", **DONE}])
    assert ("are left out" in html, "Claims that hold" in html) == (told is not None, told is None)
    if told is not None:
        assert source.why_absent("features") == f"Left out: {told}."


# -------------------------------------------------------------------------------------- who tells it


def run(folder: Path, entry: str, *, targets=None, force=()) -> None:
    units = [
        unit("model"),
        unit("attribute[b]", ["model"], entry=entry),
        unit("intervene[b]", ["attribute[b]"]),
        unit("report", ["model", "attribute[b]", "intervene[b]"], entry="says_what_is_absent", optional_inputs=True),
    ]
    Run(folder, units, Options(), NullProgress()).execute(targets, force=force)


def told(folder: Path) -> dict[str, tuple[str, str | None]]:
    [file] = (folder / "artifacts" / "report").glob("*/absent.json")
    return {entry["name"]: (entry["status"], entry["reason"]) for entry in read_json(file)}


def test_a_report_is_told_what_failed_and_what_waits_for_it_and_again_when_that_changes(tmp_path):
    run(tmp_path, "refuses")
    waits = ("pending", "waits for attribute[b], which failed")
    assert told(tmp_path) == {"attribute[b]": ("failed", "the toy is broken"), "intervene[b]": waits}
    run(tmp_path, "crashes")
    assert told(tmp_path)["attribute[b]"] == ("failed", "ZeroDivisionError: one over nothing")


def test_a_report_made_again_by_itself_still_knows_what_failed(tmp_path):
    run(tmp_path, "refuses")
    before = told(tmp_path)
    run(tmp_path, "refuses", targets=["report"], force=["report"])
    assert told(tmp_path) == before
    assert read_json(tmp_path / "progress.json")["units"]["attribute[b]"]["status"] == "failed"


def test_what_has_not_run_is_told_as_that(tmp_path):
    run(tmp_path, "digest", targets=["model"])
    run(tmp_path, "digest", targets=["report"], force=["report"])
    assert told(tmp_path) == {"attribute[b]": ("pending", None), "intervene[b]": ("pending", None)}
