"""A study of published dictionaries in each of their layouts: from the files to the report."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

import mechstudy as ms
from mechstudy.study.finished import latest
from tests.support.published_files import LAYERS, LAYOUTS, D
from tests.support.tiny_study import write_study

pytestmark = [pytest.mark.slow, pytest.mark.process]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_study_of_published_dictionaries_runs_to_its_report(layout, tmp_path):
    """The run's own dictionaries are those of the files, at the study's layers; nothing is trained."""
    file = write_study(tmp_path, n_prompts=3, tokens=2048)
    (tmp_path / "their").mkdir()
    named = LAYOUTS[layout](tmp_path / "their")
    theirs = f"their/{named}" if isinstance(named, str) else {layer: f"their/{name}" for layer, name in named.items()}
    files = tmp_path / theirs if isinstance(theirs, str) else {layer: tmp_path / name for layer, name in theirs.items()}
    config = yaml.safe_load(file.read_text())
    config["dictionaries"] = {"from": theirs, "evaluation_rows": 256, "evaluation_tokens": 128}
    file.write_text(yaml.safe_dump(config))
    run = ms.Study.load(file, out=tmp_path / "run", say=lambda _: None).run()
    units = latest(run.path)
    assert sorted(run.dictionaries) == [*LAYERS] and not [name for name in units if name.startswith("train")]
    assert (run.path / "report" / "index.html").exists()
    own, loaded = ms.load_dictionaries(run.path), ms.load_dictionaries(files)
    for layer in LAYERS:
        evaluation = json.loads((units[f"published[{layer}]"].path / "evaluation.json").read_text())
        assert evaluation["d_in"] == D and evaluation["fvu"] > 0
        x = torch.randn(5, D, generator=torch.Generator().manual_seed(1)).to(own[layer].b_enc.dtype)
        assert torch.equal(own[layer].reconstruct(x), loaded[layer].reconstruct(x))
        assert str(layer) in own[layer].cfg.site_in.split(".")
    if own[0].cfg.kind != "sae":
        graph = next(iter(run.graphs.values()))
        assert graph.scores()["conservation_residual_max"] < 1e-4
