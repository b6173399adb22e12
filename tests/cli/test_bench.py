"""`mechstudy bench circuits`."""

from __future__ import annotations

import json

import pytest

from tests.support.toy_model import mechstudy


def test_the_circuits_bench_writes_rows_means_and_checks(tmp_path):
    file = tmp_path / "scores.json"
    small = ("-m", "ioi_one_layer", "--methods", "relp", "--methods", "patching", "--check", "--out", str(file))
    printed = mechstudy("bench", "circuits", *small).stdout
    assert "ioi_one_layer: kept" in printed and printed.count("holds") == 1
    assert "nodes, AUROC" in printed and "edges, AUROC" in printed and "mean P@5" in printed
    result = json.loads(file.read_text())
    rows = {(row["kind"], row["method"]) for row in result["rows"]}
    assert rows == {("node", "relp"), ("node", "patching"), ("edge", "patching")}
    assert result["checks"]["ioi_one_layer"]["kept"] < 1e-3
    assert {mean["auroc"] for mean in result["means"] if mean["method"] == "patching"} == {1.0}


@pytest.mark.slow
def test_the_null_bench_counts_wrong_verdicts(tmp_path):
    file = tmp_path / "null.json"
    printed = mechstudy("bench", "null", "-k", "random weights", "--n", "1", "--out", str(file)).stdout
    assert "random weights" in printed and "all null studies" in printed
    result = json.loads(file.read_text())
    assert [row["kind"] for row in result["rows"]] == ["random weights"]
    assert result["rates"][0]["n"] == 1 and result["rates"][0]["holds"] == 0


def test_unknown_circuits_and_methods_are_refused():
    refused = mechstudy("bench", "circuits", "-m", "inductoin", code=2)
    assert "no known circuit 'inductoin'" in refused.stderr and "fix:" in refused.stderr
    assert "no method 'epa'" in mechstudy("bench", "circuits", "-m", "ioi", "--methods", "epa", code=2).stderr


def test_the_circuits_bench_names_circuits_and_methods_in_its_help():
    from mechstudy.cli.bench import CIRCUITS, METHODS
    from mechstudy.referee.bench import METHODS as EXISTING
    from mechstudy.referee.suite import NAMES

    assert (CIRCUITS, METHODS) == (NAMES, EXISTING), "help imports nothing heavy, so it has names of its own"
