"""Whole studies whose graphs have other nodes than transcoders' features: prompts to report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import mechstudy as ms
from tests.support.tiny_study import write_study

pytestmark = pytest.mark.slow

SAE = {"kind": "sae", "activation": "batchtopk", "d_sae": 32, "k": 4}


def run_study(folder: Path, **changes: dict) -> ms.Run:
    file = write_study(folder, n_prompts=4, tokens=2048)
    config = yaml.safe_load(file.read_text())
    for section, values in changes.items():
        config[section] = config.get(section, {}) | values
    file.write_text(yaml.safe_dump(config))
    return ms.Study.load(file, out=folder / "run", say=lambda _: None).run()


def nodes_of(run: ms.Run) -> dict[int, int]:
    """How many feature nodes the behaviour's graph has in each layer."""
    nodes = run.graphs["mine"].nodes.filter(kind="feature")
    return dict(nodes["layer"].value_counts().iter_rows())


def frozen_error(run: ms.Run) -> float:
    """What the graph's edges miss of the frozen model's changes, relatively and at most."""
    edges = json.loads(next((run.path / "artifacts" / "intervene").glob("*/summary.json")).read_text())["edges"]
    assert edges["n"] > 5
    return float(edges["max_relative_error_frozen"])


@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "attn_out"])
def test_a_study_of_saes_runs_to_the_report(tmp_path, site):
    run = run_study(tmp_path, dictionaries={"site": site, "layers": [0, 2], "architecture": SAE})
    graph = run.graphs["mine"]
    assert set(nodes_of(run)) == {0, 2} and graph.scores()["conservation_residual_max"] < 1e-4
    assert frozen_error(run) < 1e-3
    assert len(run.effects) and (run.path / "report" / "index.html").exists()


def test_neurons_need_no_dictionaries(tmp_path):
    run = run_study(tmp_path, attribution={"basis": "neurons", "max_neurons": 200})
    assert set(nodes_of(run)) == {0, 1, 2}
    assert run.graphs["mine"].scores()["conservation_residual_max"] < 1e-4
    phases = {folder.name for folder in (run.path / "artifacts").iterdir()}
    assert "train" not in phases and {"attribute", "features", "intervene", "verdict", "report"} <= phases
    assert frozen_error(run) < 1e-3


def test_neurons_stand_in_where_there_is_no_dictionary(tmp_path):
    run = run_study(tmp_path, attribution={"basis": "mixed"})
    pages = json.loads(next((run.path / "artifacts" / "features").glob("*/features.json")).read_text())["features"]
    kinds = {page["layer"]: page["kind"] for page in pages}
    assert kinds[2] == "neurons" and kinds[0] == "skip_transcoder"
    assert set(nodes_of(run)) == {0, 1, 2}


@pytest.mark.parametrize("basis", ["dictionaries", "neurons"])
def test_a_study_of_differences_runs_to_the_report(tmp_path, basis):
    run = run_study(tmp_path, attribution={"explains": "difference", "basis": basis, "contrast": {"steps": 20}})
    graph = run.graphs["mine"]
    assert graph.scores()["path_gap"]["target"] < 0.02 and len(graph.edges) > 20
    aggregate = json.loads(next((run.path / "artifacts" / "attribute").glob("*/aggregate.json")).read_text())
    assert aggregate["explains"] == "difference" and not any("instances" in edge for edge in aggregate["edges"])
    [prompt, *_] = graph.prompts
    assert prompt.explains == "difference" and prompt.nodes.filter(kind="feature")["change"].null_count() == 0
    report = (run.path / "report" / "graph-mine.html").read_text()
    assert "what the answers' contrast in the clean prompt has over" in report
    assert len(run.effects)
