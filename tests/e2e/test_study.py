"""The real model, end to end, through the command line: what a study promises to whoever runs one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STUDY = Path(__file__).with_name("study.yaml")
BEHAVIOURS = ("subject_verb_agreement", "indirect_object_identification")
# Logs hold clock times; everything else must be the same bytes whatever happened on the way.
LOGS = ("scalars.jsonl", "timing.json", "tensorboard/")

pytestmark = pytest.mark.real


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mechstudy", *arguments]


def mechstudy(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def checksums(run: Path, *phases: str) -> dict[str, str]:
    """Artifact (unit and id) and file -> sha256, for every file that is no log."""
    found = {}
    for manifest in run.glob("artifacts/*/*/manifest.json"):
        content = json.loads(manifest.read_text())
        if (phases and content["phase"] not in phases) or manifest.parent.name.endswith(".damaged"):
            continue
        for name, entry in content["files"].items():
            if not name.startswith(LOGS):
                found[f"{manifest.parent.name}/{name}"] = entry["sha256"]
    return found


def ran(run: Path, *arguments: str) -> list[str]:
    """Runs the study and says which units ran."""
    before = {p: p.stat().st_mtime_ns for p in run.glob("artifacts/*/*/manifest.json")}
    mechstudy("run", str(STUDY), "--out", str(run), *arguments)
    after = {p: p.stat().st_mtime_ns for p in run.glob("artifacts/*/*/manifest.json")}
    return sorted(json.loads(p.read_text())["unit"] for p, t in after.items() if before.get(p) != t)


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "run"
    mechstudy("run", str(STUDY), "--out", str(folder))
    return folder


@pytest.fixture(scope="session")
def summary(run) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_the_model_shows_both_behaviours(summary):
    for behaviour in BEHAVIOURS:
        for split in ("train", "test"):
            baseline = summary["baseline"][behaviour][split]
            assert baseline["n"] == 24 and baseline["accuracy"] >= 0.8 and baseline["passed"], (behaviour, split)


def test_dictionaries_explain_held_out_rows_and_are_alive(summary):
    assert sorted(summary["dictionaries"], key=int) == ["0", "15", "23"]
    for layer, dictionary in summary["dictionaries"].items():
        assert dictionary["r2"] > 0.3 and dictionary["dead_share"] < 0.5, (layer, dictionary)
        assert dictionary["d_sae"] == 2 * 576 and dictionary["ce_loss_recovered"] is not None


def test_every_row_of_every_graph_adds_up(summary):
    for behaviour in BEHAVIOURS:
        graphs = summary["graphs"][behaviour]
        assert graphs["n_prompts"] == 4 and graphs["nodes"] > 10
        assert graphs["conservation_residual_max"] <= 1e-4
        assert graphs["replacement_pruned"] <= graphs["replacement"]


def test_frozen_interventions_measure_what_the_graph_predicts(run):
    checked = 0
    for path in run.glob("artifacts/intervene/*/summary.json"):
        edges = json.loads(path.read_text())["edges"]
        if edges and edges["n"] >= 3:
            assert edges["spearman_frozen"] >= 0.999
            assert edges["max_relative_error_frozen"] <= 1e-3
            checked += 1
    assert checked, "no behaviour had three edges to check"


def test_a_sham_intervention_does_exactly_nothing(run):
    for path in run.glob("artifacts/intervene/*/summary.json"):
        assert json.loads(path.read_text())["sham_max"] == 0


def test_captured_bytes_are_layers_x_positions_x_width_x_2_x_prompts(tmp_path):
    """The specification's shape: 15 layers, the last 5 tokens, 80 prompts, bf16."""
    shape = ("--layers", "10-24", "--n-samples", "80", "--set", "capture.sites=[mlp_out]")
    only = ("--set", "capture.positions=last-5", "--set", "capture.versions=[clean]")
    mechstudy("capture", str(STUDY), "--prompts", *shape, *only, "--out", str(tmp_path))
    [store] = tmp_path.glob("artifacts/capture/capture-*agreement*/train")
    rows = [p for p in store.glob("mlp_out.*.bin") if not p.name.endswith(".norms.bin")]
    assert len(rows) == 15
    assert sum(p.stat().st_size for p in rows) == 15 * 5 * 576 * 2 * 80


def test_graphs_are_what_neuronpedia_reads(run):
    for path in run.glob("artifacts/attribute/*/graphs/*-000.json"):
        graph = json.loads(path.read_text())
        ids = {node["node_id"] for node in graph["nodes"]}
        assert len(ids) == len(graph["nodes"])
        assert all(link["source"] in ids and link["target"] in ids for link in graph["links"])
        kinds = {node["feature_type"] for node in graph["nodes"]}
        assert {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"} <= kinds
        ledger = graph["metadata"]["mechstudy"]["ledger"]
        parts = sum(ledger[k] for k in ("features", "errors", "tokens", "biases"))
        assert parts == pytest.approx(ledger["target"], rel=1e-4)


def test_saelens_files_load_as_dictionaries(run):
    from mechstudy.dictionaries.dictionary import Dictionary

    folders = list(run.glob("artifacts/train/*/dictionary"))
    assert len(folders) == 3
    for folder in folders:
        assert Dictionary.load(folder).cfg.d_sae == 2 * 576


def test_a_second_run_runs_no_unit_in_15_seconds(run, summary):
    began = time.monotonic()
    assert ran(run) == []
    assert time.monotonic() - began < 15


def test_changed_interventions_run_interventions_and_report_alone(run, summary):
    units = ran(run, "--set", "interventions.n_samples=12", "--set", "interventions.kinds=[ablation]")
    assert units == sorted([*(f"intervene[{b}]" for b in BEHAVIOURS), "report"])


def test_a_flipped_byte_is_found_named_and_only_that_unit_is_made_again(run, summary):
    [file] = run.glob("artifacts/train/train-15-*/dictionary/sae_weights.safetensors")
    before = checksums(run, "train")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    done = mechstudy("verify", str(STUDY), "--out", str(run), check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 2 and "train-15" in told and "sae_weights.safetensors" in told
    again = ran(run)
    assert "train[15]" in again and not {"train[0]", "train[23]", "corpus"} & set(again)
    assert checksums(run, "train") == before


def test_killed_in_training_and_in_interventions_a_run_ends_as_if_it_had_not_been(run, summary, tmp_path):
    """Killed twice with SIGKILL, the same bytes come out: dictionaries, graphs, every effect of every sample."""
    folder = tmp_path / "run"
    kill_when(folder, lambda: list(folder.glob("artifacts/train/*.partial/.scratch/checkpoint*")))
    kill_when(folder, lambda: list(folder.glob("artifacts/intervene/*.partial/results_partial_2.csv")))
    mechstudy("run", str(STUDY), "--out", str(folder))
    assert mechstudy("verify", str(STUDY), "--out", str(folder)).returncode == 0
    compared = ("prompts", "baseline", "corpus", "capture", "train", "attribute", "features", "intervene", "verdict")
    expected = checksums(run, *compared)
    found = checksums(folder, *compared)
    assert len(found) > 40
    assert {k: expected.get(k) for k in found} == found


def kill_when(folder: Path, reached) -> None:
    process = subprocess.Popen(
        command("run", str(STUDY), "--out", str(folder)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 900
    try:
        while not reached():
            assert process.poll() is None, f"ended before it could be killed: {process.stderr.read()[-2000:]}"
            assert time.monotonic() < deadline, "never got there"
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


def handle_of(run: Path, page: str, address: str) -> str:
    """The handle that a page of the report shows for an address."""
    html = (run / "report" / page).read_text()
    found = re.search(rf'title="mechstudy reproduce STUDY (\w+) \({re.escape(address)}\)"', html)
    assert found is not None, f"{page} shows no handle of {address}"
    return found[1]


def test_a_number_of_the_report_is_made_again_and_a_tampered_one_is_found(run, summary, tmp_path):
    behaviour = BEHAVIOURS[0]
    address = f"baseline[{behaviour}]/summary.json#/splits/test"
    handle = handle_of(run, f"behaviour-{behaviour}.html", address)
    here = tmp_path / "run"
    shutil.copytree(run, here, symlinks=True)
    words = ("reproduce", str(STUDY), handle, "--out", str(here), "--from-inputs", "--run")
    again = mechstudy(*words, "--again-in", str(tmp_path / "again"))
    assert address in again.stdout and "equal, to the byte" in again.stdout
    file = next(here.glob(f"artifacts/baseline/baseline-{behaviour}-*/summary.json"))
    content = json.loads(file.read_text())
    content["splits"]["test"]["accuracy"] -= 0.25
    file.write_text(json.dumps(content))
    sizes = json.loads((file.parent / "manifest.json").read_text())["files"]["summary.json"]["size"]
    file.write_text(file.read_text().ljust(sizes))
    tampered = mechstudy(*words, "--again-in", str(tmp_path / "again-2"), check=False)
    assert tampered.returncode == 2 and "NOT as the manifest says" in tampered.stdout
    assert "DIFFERS" in tampered.stdout and "/accuracy: " in tampered.stdout and "by 0.25" in tampered.stdout


def test_archived_cleaned_and_restored_a_run_is_equal_and_runs_nothing(run, summary, tmp_path):
    here = tmp_path / "run"
    shutil.copytree(run, here, symlinks=True)
    file = tmp_path / "small.tar.gz"
    before = checksums(here)
    mechstudy("archive", str(STUDY), "--out", str(here), "-o", str(file), "--all")
    freed = mechstudy("clean", str(STUDY), "--out", str(here), "--yes").stdout
    assert "capture" in freed and "corpus" in freed
    gone = [p for p in before if p.endswith((".bin", "tokens.safetensors")) and not list(here.glob(f"artifacts/*/{p}"))]
    assert gone and checksums(here) == before, "manifests stay"
    mechstudy("restore", str(file), "--out", str(here))
    assert "every checksum is right" in mechstudy("verify", str(here)).stdout
    discarded = {p for p in before if not list(run.glob(f"artifacts/*/{p}"))}
    assert {p for p in before if not list(here.glob(f"artifacts/*/{p}"))} == discarded
    there = tmp_path / "there"
    mechstudy("restore", str(file), "--out", str(there))
    units = json.loads(mechstudy("status", str(STUDY), "--out", str(run), "--json").stdout)["units"]
    of_this_study = {Path(unit["artifact"]).name for unit in units}  # other tests left other versions' beside them
    assert checksums(there) == {p: found for p, found in before.items() if p.split("/")[0] in of_this_study}
    assert ran(there) == []
