"""A unit's files as the report reads them, why one is absent, and addresses of numbers in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.report.data import Address, UnitFiles, at, differences, parse_address
from tests.support.report_fixture import report_data


def test_a_broken_artifact_is_named(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text('{"n_prompts": ', encoding="utf-8")
    with pytest.raises(MechstudyError, match=r"attribute\[x\]: scores.json cannot be read"):
        UnitFiles("attribute[x]", tmp_path).json("scores.json")


def test_a_line_separator_inside_a_jsonl_string_does_not_split_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"t": "x\u2028y"}\n', encoding="utf-8")
    assert UnitFiles("u", tmp_path).rows("a.jsonl") == [{"t": "x\u2028y"}]


def test_a_quoted_newline_inside_a_csv_cell_does_not_split_the_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,top_token\n1,"\n"\n', encoding="utf-8")
    assert UnitFiles("u", tmp_path).rows("a.csv") == [{"id": "1", "top_token": "\n"}]


def test_a_behaviour_studied_below_the_gate_is_not_called_stopped(tmp_path: Path) -> None:
    gate = {"min_accuracy": 0.8, "passed": False, "on_fail": "continue"}
    (tmp_path / "summary.json").write_text(json.dumps({"gate": gate, "splits": {}}), encoding="utf-8")
    data = report_data({"behaviours": ["b"]}, {"baseline[b]": tmp_path})
    assert "Stopped" not in data.why_no_circuit(data.interventions["b"], "b")


def test_handles_are_made_from_addresses_alone_and_differ():
    a = Address("intervene[x]", "summary.json", "/tests").below("a/b~c", 3)
    assert str(a) == "intervene[x]/summary.json#/tests/a~1b~0c/3" and parse_address(str(a)) == a
    assert a.handle == "g6ssp73" and at({"tests": {"a/b~c": [0, 0, 0, 7]}}, a.pointer) == 7
    handles = {Address("train[1]", "evaluation.json", f"/x/{i}").handle for i in range(20_000)}
    assert len(handles) == 20_000 and parse_address("g6ssp73") is None


def test_differences_are_listed_by_pointer():
    before = {"a": [1, {"b": 2.0}], "c": None}
    assert differences(before, {"a": [1, {"b": 2.0}], "c": None}) == []
    assert differences(before, {"a": [1, {"b": 3.0}], "d": 1}) == [("/a/1/b", 2.0, 3.0), ("/d", None, 1)]
    assert differences([1, 2], [1]) == [("", [1, 2], [1])]
