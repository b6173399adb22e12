"""The verdict of a study that trains more than one dictionary of every layer."""

import pytest

from mechstudy.core.jsonio import read_json
from mechstudy.core.progress import NullProgress
from mechstudy.planning.opened_study import open_study
from mechstudy.runner.study_run import execute
from tests.support.tiny_study import write_study

SETS = ["dictionaries.variants=[{name: seed-1}]", "dictionaries.controls=frozen"]


@pytest.mark.slow
def test_circuits_of_variants_and_controls_are_chosen_and_compared(tmp_path):
    study = write_study(tmp_path)
    opened, plain = open_study(study, SETS, out=tmp_path / "run"), open_study(study, out=tmp_path / "plain")
    variants = [unit.name for unit in opened.units if unit.phase.name == "variant"]
    costs = [{u.name: u for u in one.units}["verdict[mine]"].estimate for one in (plain, opened)]
    assert costs[0].flops < costs[1].flops
    result = execute(opened, [*variants, "verdict[mine]"], progress=NullProgress())
    assert result.exit_code == 0, result.failures
    record = read_json(result.unit("verdict[mine]").artifact.file("verdict.json"))
    rows = {row["name"]: row for row in record["variants"]}
    assert {name: row["frozen"] for name, row in rows.items()} == {
        "seed-1": False,
        "frozen-encoder": True,
        "frozen-decoder": True,
    }
    assert all(row["explained"] is not None and row["size"] >= 1 for row in rows.values())
    criteria = {c["name"]: c for c in record["criteria"]}
    assert criteria["variants"]["value"] == rows["seed-1"]["explained"]
    assert criteria["controls"]["value"] in {rows[f"frozen-{part}"]["less"] for part in ("encoder", "decoder")}
