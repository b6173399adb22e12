"""Studies of what other tools have written: from their files to the report, with their features."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

import mechstudy as ms
from mechstudy.dictionaries.loading import load_dictionaries
from mechstudy.study.finished import dictionary_places, latest
from tests.peers.environment import ROOT
from tests.peers.exchange import D, F, K, assert_computes, write_rows
from tests.support.tiny_study import write_study

pytestmark = pytest.mark.peers
LAYERS = (0, 1, 2)


def run_study(folder: Path, published: object) -> ms.Run:
    file = write_study(folder, n_prompts=3, tokens=2048, d=D)
    config = yaml.safe_load(file.read_text())
    config["dictionaries"] = {"from": published, "evaluation_rows": 256, "evaluation_tokens": 128}
    file.write_text(yaml.safe_dump(config))
    run = ms.Study.load(file, out=folder / "run", say=lambda _: None).run()
    assert (run.path / "report" / "index.html").exists()
    return run


def assert_same_features(run: ms.Run, x: torch.Tensor, answers: dict[int, Path]) -> None:
    """The run's dictionaries give the features and reconstructions that the tool gave."""
    places = dictionary_places(latest(run.path))
    assert sorted(places) == sorted(answers)
    for layer, folder in answers.items():
        assert_computes(load_dictionaries({layer: places[layer]})[layer], x, folder)


def test_a_study_of_circuit_tracers_set(circuit_tracer, tmp_path):
    theirs = tmp_path / "set"
    for layer in LAYERS:
        x = write_rows(theirs / f"rows_{layer}", torch.float32)
    circuit_tracer("make_set", folder=theirs, layers=len(LAYERS), d=D, width=F, jumps=True, skip=False)
    circuit_tracer("compute_set", folder=theirs)
    run = run_study(tmp_path, "set")
    assert_same_features(run, x, {layer: theirs / f"rows_{layer}" for layer in LAYERS})
    for graph in run.graphs.values():
        assert graph.scores()["conservation_residual_max"] < 1e-4


def test_a_study_of_sparsifys_transcoders(sparsify, tmp_path):
    options = {"num_latents": F, "k": K, "transcode": True, "skip_connection": True}
    folders = {layer: tmp_path / "their" / f"layers.{layer}.mlp" for layer in LAYERS}
    for layer, folder in folders.items():
        x = write_rows(folder, torch.float32)
        sparsify("make", folder=folder, d=D, options=options, dtype="float32", seed=layer)
    assert_same_features(run_study(tmp_path, "their"), x, folders)


def test_a_study_of_saelens_saes(saelens, tmp_path):
    folder = tmp_path / "sae"
    x = write_rows(folder, torch.float32)
    options = {"d_in": D, "d_sae": F, "k": K, "dtype": "float32", "device": "cpu"}
    saelens("make", folder=folder, architecture="topk", options=options)
    assert_same_features(run_study(tmp_path, "sae"), x, {2: folder})


def test_an_entry_of_saelens_registry_is_asked_for_on_the_hub(python, tmp_path):
    """Beside an installed SAELens ``saelens:RELEASE/ID`` is an address of its registry; nothing is fetched here."""
    file = write_study(tmp_path, n_prompts=3, tokens=2048, d=D)
    config = yaml.safe_load(file.read_text())
    config["dictionaries"] = {"from": {1: "saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre"}}
    file.write_text(yaml.safe_dump(config))
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT / "src")}
    command = [str(python), "-m", "mechstudy", "plan", str(file)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "hf:jbloom/GPT2-Small-SAEs-Reformatted" in done.stderr + done.stdout
