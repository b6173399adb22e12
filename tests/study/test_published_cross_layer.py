"""Studies of a cross-layer transcoder that somebody has published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mechstudy as ms
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries import CltOutput, evaluate, language_model_effect
from mechstudy.models.sites import Site
from mechstudy.planning.opened_study import open_study
from mechstudy.study.finished import latest
from mechstudy.study.phases.train import load_published
from tests.support.clt_world import random_clt
from tests.support.tiny import tiny_model
from tests.support.tiny_study import published_study, units_of, write_study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published-clt")
    write_study(folder)
    model = ms.load_model(folder / "model", device="cpu")
    random_clt(model).to(torch.float32).save(folder / "clt")
    return folder


@pytest.fixture(scope="module")
def run(world) -> ms.Run:
    file = published_study(world, "whole", **{"from": "clt"})
    return ms.Study.load(file, out=world / "runs" / "whole", say=lambda _: None).run()


def test_a_study_runs_to_its_report(run, world):
    assert list(run.dictionaries) == [0, 1, 2]
    assert run.dictionaries[0].sites_out == ("mlp_out.0", "mlp_out.1", "mlp_out.2")
    source = json.loads((latest(run.path)["published[1]"].path / "source.json").read_text())
    assert (source["address"], source["clt_layer"], source["architecture"]) == ("clt", 1, "cross_layer_transcoder")
    assert "clt" in (run.path / "report" / "dictionaries.html").read_text()
    for graph in run.graphs.values():
        assert {name.split("/")[0] for name in graph.nodes["feature"].drop_nulls()} > {"0"}
    scores = json.loads((latest(run.path)["attribute[mine]"].path / "scores.json").read_text())
    assert max(row["conservation_residual_max"] for row in scores["per_prompt"]) < 1e-2
    assert len(run.effects) and len(run.edges)
    for row in run.edges.to_dicts():
        assert row["frozen"] == pytest.approx(row["predicted"], rel=1e-2, abs=1e-3)


def test_layers_are_judged_by_the_whole_reconstruction(run, world):
    evaluations = run.evaluations.to_dicts()
    assert [(e["layer"], e["layers_read"], e["d_in"]) for e in evaluations] == [(0, 1, 16), (1, 2, 16), (2, 3, 16)]
    assert len({e["fvu"] for e in evaluations}) == 3 and all(e["ce_dictionary"] > 0 for e in evaluations)


@pytest.mark.parametrize("read", ["mlp_in", "resid_mid"])
def test_scores_of_one_layer_equal_those_of_the_whole(read):
    model = tiny_model()
    clt = random_clt(model, site_in=read)
    tokens = torch.randint(1, 257, (6, 9), generator=torch.Generator().manual_seed(0))
    sites = [Site(kind, layer) for layer in range(3) for kind in (read, "mlp_out")]
    acts = model.forward(tokens, capture=sites).activations
    x, y = (torch.stack([acts[Site(kind, i)] for i in range(3)], 2)[:, 1:].flatten(0, 1) for kind in (read, "mlp_out"))
    whole = evaluate(clt, (x, y))
    for layer in range(3):
        one = CltOutput([clt.layer(i) for i in range(layer + 1)])
        scores = evaluate(one, (x[:, : layer + 1].flatten(1), y[:, layer]))
        assert scores["fvu"] == pytest.approx(whole["fvu_per_layer"][layer], rel=1e-9)
        assert scores["l0"] == pytest.approx(whole["l0_per_layer"][layer], rel=1e-9)
        x_wide = torch.stack([acts[Site(read, i)] for i in range(3)], 2)
        expected = clt.reconstruct(x_wide)[:, 1:, layer]

        def splice(value, expected=expected):
            return torch.cat([value[:, :1], expected], 1)

        logits = model.forward(tokens, edits={Site("mlp_out", layer): splice}, logits_at="all").logits
        ce = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        assert language_model_effect(model, one, tokens)["ce_dictionary"] == pytest.approx(float(ce), rel=1e-5)


def test_some_layers_and_another_runs_layers(world, run):
    few = units_of(published_study(world, "few", **{"from": "clt", "layers": [1]}))
    assert [name for name in few if name.startswith("published")] == ["published[1]"]
    spec = few["published[1]"].spec
    assert (spec.site_in, spec.clt_layer, spec.path) == ("mlp_in.1", 1, str(world / "clt"))
    one = units_of(published_study(world, "mapped", **{"from": {2: "clt"}}))
    assert [name for name in one if name.startswith("published")] == ["published[2]"]
    again = units_of(published_study(world, "again", **{"from": "runs/whole"}))
    assert again["published[1]"].spec.clt_layer == 1 and again["published[1]"].spec.sha256 == spec.sha256
    planned = units_of(published_study(world, "planned", **{"from": "clt"}))
    held = {h.name: h for h in planned["attribute[mine]"].estimate.holds}["dictionaries"]
    assert held.count == 24 * 16 * (3 + 3 + 2 + 1)  # encoders, and what features of each layer write
    estimates = [planned[f"published[{layer}]"].estimate.bytes_in_memory for layer in range(3)]
    assert estimates[2] - estimates[0] == 4 * 24 * 16 * (2 + 2 + 1)  # two more layers are read to judge the last


def test_changed_files_and_other_models_are_refused(world, tmp_path):
    random_clt(tiny_model(d=16, n_layers=4)).to(torch.float32).save(world / "deeper")
    with pytest.raises(MechstudyError, match="layer 3, which the model does not have"):
        open_study(published_study(world, "deeper", **{"from": "deeper"}))
    with pytest.raises(MechstudyError, match="has no layer 9"):
        open_study(published_study(world, "beyond", **{"from": {9: "clt"}}))
    random_clt(tiny_model(d=16), seed=1).to(torch.float32).save(world / "other")
    record = units_of(published_study(world, "other", **{"from": "other"}))["published[0]"].spec.canonical()
    assert load_published(record, "cpu").cfg.site_in == "mlp_in.0"
    random_clt(tiny_model(d=16), seed=2).to(torch.float32).save(world / "other")
    with pytest.raises(MechstudyError, match="was changed"):
        load_published(record, "cpu")
