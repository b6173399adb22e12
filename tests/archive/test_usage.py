"""What lies beside artifacts (usage files, traces) goes where they go: into archives, back, and away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mechstudy.archive.archive import archive_run
from mechstudy.archive.clean import clean_run
from mechstudy.archive.index import contents_from
from mechstudy.archive.restore import restore_run
from mechstudy.archive.tar import read_contents
from mechstudy.core.errors import MechstudyError
from mechstudy.monitoring.record import usage_file, usages_below
from mechstudy.runner.study_run import execute
from tests.support.storage_world import copy_of, open_toy, sums


@pytest.fixture
def study(finished, tmp_path, monkeypatch):
    opened = copy_of(finished, tmp_path / "here", monkeypatch)
    (opened.folder / "profile").mkdir()
    (opened.folder / "profile" / "train-0.trace.json").write_text("{}")
    return opened


def beside(run: Path) -> dict[str, bytes]:
    """Every usage file and trace, below the run's folder."""
    files = [*run.glob("artifacts/*/*.usage.jsonl"), *(run / "profile").glob("**/*")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def test_usage_is_packed_and_comes_back_equal_with_its_artifact(study, tmp_path):
    packed = archive_run(study, tmp_path / "a.tar")
    expected = {name: data for name, data in beside(study.folder).items() if name.startswith("artifacts/")}
    assert len(expected) == 9
    back = restore_run(packed.path, tmp_path / "back").folder
    assert beside(back) == expected and usages_below(back / "artifacts")
    assert sums(back, payload=False) == sums(study.folder, payload=False)


def test_everything_has_traces_too(study, tmp_path):
    packed = archive_run(study, tmp_path / "a.tar.gz", everything=True)
    back = restore_run(packed.path, tmp_path / "back").folder
    assert beside(back) == beside(study.folder) and "profile/train-0.trace.json" in beside(back)
    assert sums(back) == sums(study.folder)


def test_restore_over_a_cleaned_run_undoes_the_cleaning(study, tmp_path):
    before, files = sums(study.folder), beside(study.folder)
    packed = archive_run(study, tmp_path / "a.tar", everything=True)
    clean_run(study, really=True)
    assert not (study.folder / "profile").exists() and sums(study.folder) != before
    restore_run(packed.path, study.folder)
    assert sums(study.folder) == before and beside(study.folder) == files


def test_existing_usage_is_never_overwritten(study, tmp_path):
    packed = archive_run(study, tmp_path / "a.tar")
    artifact = study.evaluate().nodes["train[0]"].artifact
    usage_file(artifact.path).write_text("mine\n")
    shutil.rmtree(artifact.path)
    assert restore_run(packed.path, study.folder).published == ["train[0]"]
    assert usage_file(artifact.path).read_text() == "mine\n"


def test_older_archives_are_read_and_newer_ones_refused(study, tmp_path):
    listed = json.loads(read_contents(archive_run(study, tmp_path / "a.tar").path).to_bytes())
    assert listed["schema"] == 2
    older = {**listed, "schema": 1, "files": {n: f for n, f in listed["files"].items() if "usage" not in n}}
    assert contents_from(older).study == "toy"
    with pytest.raises(MechstudyError, match="schema 3"):
        contents_from({**listed, "schema": 3})


@pytest.mark.parametrize("name", ["artifacts/train/x.usage.jsonl", "artifacts/train/x/y.usage.jsonl", "profile"])
def test_a_usage_file_of_no_artifact_is_refused(study, tmp_path, name):
    listed = json.loads(read_contents(archive_run(study, tmp_path / "a.tar").path).to_bytes())
    entry = {"sha256": "0" * 64, "size": 0}
    with pytest.raises(MechstudyError, match=r"of no artifact|does not belong"):
        contents_from({**listed, "files": {**listed["files"], name: entry}})


def test_usage_is_deleted_with_its_artifact_only(study, monkeypatch):
    files = {name for name in beside(study.folder) if name.startswith("artifacts/")}
    clean_run(study, really=True)
    assert set(beside(study.folder)) == files
    newer = open_toy(study.file.parent, monkeypatch, train=1)
    execute(newer)
    old = {node.artifact.path for node in study.evaluate().nodes.values()}
    new = {node.artifact.path for node in newer.evaluate().nodes.values()}
    gone = {e.name for e in clean_run(newer, really=True, other_versions=True).going if e.what == "other version"}
    assert {path.name for path in old - new} == {name.rpartition("/")[2] for name in gone}
    assert {newer.folder / name for name in beside(newer.folder)} == {usage_file(path) for path in new}


def test_only_stray_usage_files_are_deleted(study):
    artifacts = study.evaluate().nodes
    lost, started = artifacts["report"].artifact.path, artifacts["pages"].artifact.path
    shutil.rmtree(lost)
    started.rename(started.with_name(started.name + ".damaged"))
    found = clean_run(study, really=True)
    assert [e.name for e in found.going if e.name.endswith(".jsonl")] == [
        usage_file(lost).relative_to(study.folder).as_posix()
    ]
    assert not usage_file(lost).exists()


def test_abandoned_unit_is_deleted_with_its_usage(study):
    partial = study.folder / "artifacts" / "train" / "other-0123456789ab.partial"
    partial.mkdir()
    (partial / "x").write_bytes(b"12345")
    usage_file(partial).write_text('{"session": 1}\n')
    before = clean_run(study)
    assert not [e for e in before.going if e.what == "leftover"], "it is of something that is still there"
    assert [e.bytes for e in before.going if e.what == "unfinished"] == [5 + len('{"session": 1}\n')]
    done = clean_run(study, really=True)
    assert not partial.exists() and not usage_file(partial).exists()
    assert done.freed == sum(e.bytes for e in done.going)
