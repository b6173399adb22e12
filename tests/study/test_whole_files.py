"""What a model and a text are: whole files, compared before a result is reused and before a unit loads them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.planning.opened_study import OpenedStudy, open_study
from mechstudy.runner.study_run import execute
from mechstudy.store.artifacts import ArtifactStore
from mechstudy.store.manifest import artifact_id, write_manifest
from mechstudy.study import fingerprints
from tests.support.tiny_study import write_study

LIMIT = 16 << 10  # what counts as a large file in these tests


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    """A study whose weights and text are large files."""
    monkeypatch.setenv("MECHSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "_WHOLE", LIMIT)
    monkeypatch.setattr(fingerprints, "_EDGE", 1 << 10)
    file = write_study(tmp_path / "study", n_prompts=3)
    for path in file.parent.rglob("*"):
        os.utime(path, (time.time() - 3600,) * 2)
    assert (
        (file.parent / "model" / "model.safetensors").stat().st_size > LIMIT < (file.parent / "text.txt").stat().st_size
    )
    return file


def opened(study: Path) -> OpenedStudy:
    return open_study(study, out=study.parent / "run", fetch=True)


def edit(file: Path) -> None:
    """Changes one byte in the middle."""
    with file.open("r+b") as f:
        f.seek(file.stat().st_size // 2)
        byte = f.read(1)
        f.seek(-1, 1)
        f.write(bytes([byte[0] ^ 1]))


def weights(study: Path) -> Path:
    return study.parent / "model" / "model.safetensors"


def ids(study: Path) -> dict[str, str | None]:
    return {name: node.id for name, node in opened(study).evaluate().nodes.items()}


def test_weights_edited_in_the_middle_are_another_model(study):
    assert execute(opened(study), ["baseline[mine]"]).exit_code == 0
    before = opened(study).evaluate()
    assert before.nodes["baseline[mine]"].artifact is not None
    edit(weights(study))
    after = opened(study).evaluate()
    assert [after.nodes[name].artifact for name in ("model", "prompts[mine]", "baseline[mine]")] == [None] * 3
    assert execute(opened(study), ["baseline[mine]"]).exit_code == 0
    edit(weights(study))  # back again
    assert opened(study).evaluate().nodes["baseline[mine]"].artifact == before.nodes["baseline[mine]"].artifact


def test_text_edited_in_the_middle_is_another_corpus(study):
    before = ids(study)
    edit(study.parent / "text.txt")
    after = ids(study)
    assert after["corpus"] != before["corpus"] and after["model"] == before["model"]


def test_files_that_a_fingerprint_reads_whole_add_nothing_to_the_spec(study, monkeypatch):
    monkeypatch.setattr(fingerprints, "_WHOLE", 64 << 20)
    for name in ("model", "corpus"):
        [unit] = [unit for unit in opened(study).units if unit.name == name]
        assert "sha256" not in unit.canonical_spec


def made_by_an_earlier_version(run: Path, name: str) -> str:
    """Rewrites an artifact as one without ``sha256`` and without the record of all files; returns its id."""
    [artifact] = [artifact for artifact in ArtifactStore(run / "artifacts").all() if artifact.unit == name]
    manifest = artifact.manifest
    del manifest["spec"]["sha256"]
    manifest["runtime"].pop("model_files", None)
    inputs = {label: entry["id"] for label, entry in manifest["inputs"].items()}
    manifest["id"] = artifact_id(manifest["phase"], manifest["version"], manifest["spec"], inputs)
    write_manifest(artifact.path, manifest)
    artifact.path.rename(artifact.path.with_name(f"{name}-{manifest['id'][:12]}"))
    return str(manifest["id"])


def test_a_model_of_a_run_made_before_keeps_its_id_until_its_weights_change(study):
    assert execute(opened(study), ["model"]).exit_code == 0
    id = made_by_an_earlier_version(study.parent / "run", "model")
    assert ids(study)["model"] == id and opened(study).evaluate().nodes["model"].artifact is not None
    assert execute(opened(study), ["baseline[mine]"]).exit_code == 0
    edit(weights(study))
    assert ids(study)["model"] != id
    edit(weights(study))
    assert ids(study)["model"] == id


def test_a_corpus_of_a_run_made_before_keeps_its_id_until_it_is_written_to(study):
    assert execute(opened(study), ["corpus"]).exit_code == 0
    [model] = [a for a in ArtifactStore(study.parent / "run" / "artifacts").all() if a.unit == "model"]
    id = made_by_an_earlier_version(study.parent / "run", "corpus")
    assert ids(study)["corpus"] == id and ids(study)["model"] == model.id
    edit(study.parent / "text.txt")
    assert ids(study)["corpus"] != id


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "new.json"])
def test_every_unit_that_loads_the_model_refuses_changed_files(study, name):
    """As on Slurm: the units were made from the files of before, and are run now."""
    before = opened(study)
    assert execute(before, ["model", "prompts[mine]"]).exit_code == 0
    file = study.parent / "model" / name
    if name.endswith(".json"):
        content = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(content | {"a field": 1}))
    else:
        edit(file)
    result = execute(before, ["baseline[mine]", "capture[mine]", "corpus"])
    reasons = {failure.name: failure.error for failure in result.failures}
    assert {"baseline[mine]", "corpus"} <= set(reasons)
    for error in reasons.values():
        assert error is not None and "the model's files have changed since this run checked them" in error.what
        assert error.facts["changed"] == name and "mechstudy resume" in (error.fix or "")


def test_files_replaced_while_the_model_is_read_are_seen(study, monkeypatch):
    from mechstudy import models

    before = opened(study)
    assert execute(before, ["model", "prompts[mine]"]).exit_code == 0
    inner = models.load_folder

    def load(folder, **options):
        edit(weights(study))
        return inner(folder, **options)

    monkeypatch.setattr(models, "load_folder", load)
    [failure] = execute(before, ["baseline[mine]"]).failures
    assert failure.error is not None and failure.error.facts["changed"] == "model.safetensors"


@pytest.mark.parametrize(("name", "unit"), [("prompts.jsonl", "prompts[mine]"), ("text.txt", "corpus")])
def test_prompts_and_text_that_change_before_their_unit_runs_are_refused(study, name, unit):
    before = opened(study)
    assert execute(before, ["model"]).exit_code == 0
    edit(study.parent / name)
    [failure] = execute(before, [unit]).failures
    assert failure.error is not None and "has changed since the study was opened" in failure.error.what


def test_a_wheel_is_pinned_by_its_checksum(study):
    folder = study.parent / "model"
    assert fingerprints.model_content(folder, pinned=True).sha256 is None
    assert fingerprints.model_content(folder).sha256 is not None


def test_a_tokenizer_without_tokenizer_json_and_code_are_identity_too(study):
    folder = study.parent / "model"
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    (folder / "modeling.py").write_text("a = 1\n")
    before = fingerprints.model_content(folder, code=True)
    edit(folder / "tokenizer.model")
    changed = fingerprints.model_content(folder, code=True)
    (folder / "modeling.py").write_text("a = 2\n")
    assert len({before, changed, fingerprints.model_content(folder, code=True)}) == 3


def test_an_error_is_a_users(study):
    weights(study).unlink()
    with pytest.raises(MechstudyError, match="no safetensors weights"):
        opened(study)
