"""clean: what goes can be made again, what cannot stays and says why, and nothing else is missing after it."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechstudy.archive.archive import archive_run
from mechstudy.archive.clean import clean_run
from mechstudy.archive.rebuildable import Rebuilding
from mechstudy.archive.restore import restore_run
from mechstudy.archive.verify import verify_run
from mechstudy.core.errors import MechstudyError
from mechstudy.runner.study_run import execute
from mechstudy.store import artifacts as core
from mechstudy.store.artifacts import ArtifactStore
from mechstudy.store.lock import RunLock
from mechstudy.store.manifest import write_manifest
from mechstudy.study.phases import registry
from tests.support.storage_world import open_toy, sums
from tests.support.toy_units import calls


def going(found) -> set[tuple[str, str]]:
    return {(entry.what, entry.name.split("/")[-1].rpartition("-")[0] or entry.name) for entry in found.going}


def changed(study, unit: str, change) -> None:
    """A manifest with something else in it, soundly signed."""
    artifact = study.evaluate().nodes[unit].artifact
    change(artifact.manifest)
    write_manifest(artifact.path, artifact.manifest)


def test_dry_run_reports_bytes_and_seconds_and_changes_nothing(study):
    before = sums(study.folder)
    found = clean_run(study)
    assert going(found) == {("payload", "corpus"), ("payload", "capture-0"), ("payload", "capture-1")}
    assert all(entry.bytes == 1000 and entry.seconds is not None for entry in found.going)
    assert sums(study.folder) == before and found.freed == 0


def test_cleaned_payload_is_rebuilt_only_where_needed(study, monkeypatch):
    before = sums(study.folder, payload=False)
    assert clean_run(study, really=True).freed == 3000
    assert sums(study.folder, payload=False) == before and verify_run(study.folder).problems == []
    assert study.evaluate().to_run == [] and clean_run(study).going == []
    ran = execute(open_toy(study.file.parent, monkeypatch, train=1), ["train[1]"]).ran
    assert ran == ["corpus", "capture[1]", "train[1]"]


def test_payload_that_somebody_still_needs_stays(study):
    store = study.evaluate().store
    store.remove(study.evaluate().nodes["train[1]"].artifact)
    found = clean_run(study, really=True)
    assert going(found) == {("payload", "capture-0"), ("payload", "corpus"), ("leftover", "train-1")}
    kept = {entry.name.split("/")[-1].rpartition("-")[0]: entry.kept for entry in found.entries if entry.kept}
    assert kept == {"capture-1": "train[1] still needs it"} and study.evaluate().to_run == ["train[1]"]


def test_artifacts_of_other_machines_stay_until_requested(study):
    changed(study, "capture[0]", lambda m: m["provenance"]["cpu"].update(model="Other CPU"))
    changed(study, "corpus", lambda m: m["provenance"]["packages"].update(torch="1.0"))
    kept = {entry.name.split("/")[-1].rpartition("-")[0]: entry.kept for entry in clean_run(study).entries}
    assert "on another machine (Other CPU)" in kept["capture-0"] and "with another torch (1.0)" in kept["corpus"]
    assert "cannot be rebuilt" in kept["capture-1"], "its corpus might be needed"
    assert len(clean_run(study, elsewhere=True).going) == 3


def test_an_artifact_whose_input_is_missing_stays(study):
    corpus = study.evaluate().nodes["corpus"].artifact
    entry = study.evaluate().store.all()
    rebuilding = Rebuilding(study, [artifact for artifact in entry if artifact.id != corpus.id])
    capture = study.evaluate().nodes["capture[0]"].artifact
    assert rebuilding.obstacle(capture) == "its input corpus is missing"


TEXT = {"tokens": 9, "context": 4, "fingerprint": "old"}
PROMPTS = {"behaviour": "b", "n": {"test": 1}, "seed": 0, "sha256": "x"}
MODEL = {"source": "path:other", "dtype": "float32", "trust_remote_code": False, "chat": False, "fingerprint": "x"}


@pytest.mark.parametrize(
    ("unit", "spec", "why"),
    [
        ("corpus", {**TEXT, "source": "text:texts/a.txt"}, "has changed: a.txt"),
        ("corpus", {**TEXT, "source": "text:texts/gone.txt"}, "is gone"),
        ("corpus", {**TEXT, "source": "hf:owner/text"}, "without a revision"),
        ("corpus", {**TEXT, "source": "hf:owner/text@abc", "fingerprint": ""}, None),
        ("prompts[b]", {**PROMPTS, "file": "gone.jsonl"}, "the file it was read from is gone: gone.jsonl"),
        ("prompts[b]", {**PROMPTS, "file": "study.yaml"}, "the file it was read from has changed"),
        ("model", MODEL, "the study has another model now"),
    ],
)
def test_artifacts_of_files_that_are_gone_or_changed_stay(study, unit, spec, why):
    """A toy's artifact with the manifest of a real phase, made by an earlier version of the study."""
    artifact = study.evaluate().nodes[unit].artifact
    artifact.unit = f"{unit} before"
    artifact.manifest.update(spec=spec, version=registry.phase_of(artifact.phase, spec).version)
    found = Rebuilding(study, [artifact, *study.evaluate().store.all()]).obstacle(artifact)
    assert found is None if why is None else why in found


def test_another_version_of_the_code_is_an_obstacle(study):
    artifact = study.evaluate().nodes["train[0]"].artifact
    artifact.manifest["version"] = 7
    assert "another version of the code (train 7)" in Rebuilding(study, [artifact]).obstacle(artifact)


def test_other_versions_are_deleted_only_on_request(study, monkeypatch):
    newer = open_toy(study.file.parent, monkeypatch, train=1)
    execute(newer)
    found = clean_run(newer, really=True)
    listed = [entry for entry in found.entries if entry.what == "other version"]
    assert len(listed) == 4 and all(entry.kept == "--other-versions deletes it" for entry in listed)
    assert len(study.evaluate().store.all()) == 13
    assert len([e for e in clean_run(newer, really=True, other_versions=True).going if e.what == "other version"]) == 4
    assert len(study.evaluate().store.all()) == 9 and newer.evaluate().to_run == []
    noted = [json.loads(line) for line in (study.folder / "cleaned.jsonl").read_text().splitlines()]
    assert {line["unit"] for line in noted} == {"train[0]", "train[1]", "pages", "report"}
    assert next(line["spec"] for line in noted if line["unit"] == "train[0]") == {"value": 0}


def test_the_report_that_is_shown_stays(study, monkeypatch):
    newer = open_toy(study.file.parent, monkeypatch, train=1)
    execute(newer, ["train[0]"])
    kept = [e.kept for e in clean_run(newer, other_versions=True).entries if "/report/" in e.name]
    assert kept == ["it is the report that the run's folder shows"]


def test_unfinished_work_is_deleted_unless_resumable(study, monkeypatch):
    folder = study.evaluate().nodes["train[0]"].artifact.path
    (folder.parent / "train-0-0123456789ab.partial").mkdir()
    ((folder.parent / "train-0-0123456789ab.partial") / "x").write_text("of another version")
    folder.with_name(folder.name + ".partial").mkdir()  # left of a finished unit
    newer = open_toy(study.file.parent, monkeypatch, train=1)
    node = newer.evaluate().nodes["train[0]"]
    mine = newer.evaluate().store.folder("train", "train[0]", node.id)
    mine.with_name(mine.name + ".partial").mkdir()
    found = clean_run(newer, really=True)
    assert {e.name for e in found.going if e.what == "unfinished"} == {
        f"artifacts/train/{name}.partial" for name in ("train-0-0123456789ab", folder.name)
    }
    assert mine.with_name(mine.name + ".partial").exists()


def test_damaged_copies_leftovers_and_profiles(study):
    nodes = study.evaluate().nodes
    train, corpus = nodes["train[0]"].artifact.path, nodes["corpus"].artifact.path
    shutil.copytree(train, train.with_name(train.name + ".damaged"))
    shutil.copytree(train, train.with_name(train.name + ".replaced"))
    corpus.rename(corpus.with_name(corpus.name + ".replaced"))
    (study.folder / "profile").mkdir()
    (study.folder / "profile" / "a.txt").write_text("table")
    (study.folder / ".restore-1").mkdir()
    bad = train.parent / "train-9-0123456789ab.damaged"
    bad.mkdir()
    (bad / "digest").write_text("of nobody knows what")
    found = clean_run(study, really=True)
    names = {Path(entry.name).name: entry.kept for entry in found.entries}
    assert names[f"{train.name}.damaged"] is None and names[f"{train.name}.replaced"] is None
    assert names["profile"] is None and names[".restore-1"] is None
    assert "only copy" in names[f"{corpus.name}.replaced"] and "cannot be read" in names[bad.name]
    assert not (study.folder / "profile").exists() and bad.exists() and not train.with_suffix(".damaged").exists()


def test_a_run_in_use_is_refused_and_so_is_a_second_clean(study):
    with RunLock(study.folder), pytest.raises(MechstudyError, match="already running"):
        clean_run(study, really=True)
    with RunLock(study.folder, shared=True), pytest.raises(MechstudyError, match="jobs of this study"):
        clean_run(study, really=True)


def test_on_a_full_disk_payload_goes_before_its_manifest_can_say_so(study, monkeypatch):
    write, full = core.write_manifest, []

    def tight(folder, manifest):
        if (folder / "rows.bin").exists():
            full.append(folder)
            raise MechstudyError("the disk is full") from OSError(errno.ENOSPC, "No space left on device")
        write(folder, manifest)

    monkeypatch.setattr(core, "write_manifest", tight)
    found = clean_run(study, really=True)
    assert len(full) == 3 and found.freed == 3000 and found.failed == ()
    assert verify_run(study.folder).problems == [] and study.evaluate().to_run == []


def test_one_thing_that_cannot_be_deleted_does_not_keep_the_others(study, monkeypatch):
    discard = ArtifactStore.discard

    def stubborn(self, artifact, patterns):
        if artifact.unit == "corpus":
            raise PermissionError(errno.EACCES, "Permission denied")
        return discard(self, artifact, patterns)

    monkeypatch.setattr(ArtifactStore, "discard", stubborn)
    found = clean_run(study, really=True)
    assert found.freed == 2000 and next(name for name, _ in found.failed).startswith("artifacts/corpus/")


@pytest.mark.parametrize(("times", "raises"), [(1, False), (2, True)])
def test_stale_handle_is_retried_and_then_reported(study, monkeypatch, times, raises):
    read, left = Path.read_bytes, [times]

    def stale(self):
        if self.name == "manifest.json" and left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", stale)
    if raises:
        with pytest.raises(MechstudyError, match="Stale file handle"):
            study.evaluate()
    else:
        assert study.evaluate().to_run == []


@pytest.mark.parametrize(("times", "raises"), [(1, False), (2, True)])
def test_stale_handle_is_not_damage(study, monkeypatch, times, raises):
    opens, left = Path.open, [times]

    def stale(self, *arguments, **options):
        if self.name == "rows.bin" and left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return opens(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", stale)
    if raises:
        with pytest.raises(MechstudyError, match="Stale file handle"):
            verify_run(study.folder)
    else:
        assert verify_run(study.folder).problems == []
    assert not list(study.folder.rglob("*.damaged"))


# ------------------------------------------------------------------------------------------------ properties

STATES = st.fixed_dictionaries(
    {
        "versions": st.lists(st.integers(0, 2), min_size=0, max_size=2),
        "gone": st.sets(st.sampled_from(["corpus", "capture[0]", "capture[1]"])),
        "missing": st.sets(st.sampled_from(["train[0]", "train[1]", "capture[1]", "pages", "report"]), max_size=2),
        "elsewhere": st.sets(st.sampled_from(["corpus", "capture[0]", "train[1]"]), max_size=1),
        "partials": st.integers(0, 2),
        "capture": st.sampled_from(["keep", "regenerate", "discard"]),
        "other_versions": st.booleans(),
        "from_elsewhere": st.booleans(),
    }
)


@given(state=STATES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_everything_cleaned_can_be_rebuilt_from_any_state(finished, tmp_path_factory, state):
    with pytest.MonkeyPatch.context() as patch:
        here = tmp_path_factory.mktemp("state") / "here"
        shutil.copytree(finished, here, symlinks=True)
        for version in state["versions"]:
            execute(open_toy(here, patch, train=version, capture=state["capture"]))
        last = (state["versions"] or [0])[-1]
        study = open_toy(here, patch, train=last, capture=state["capture"])
        nodes = study.evaluate().nodes
        store = study.evaluate().store
        for name in state["elsewhere"]:
            changed(study, name, lambda m: m["provenance"]["cpu"].update(model="Other CPU"))
        for name in state["gone"]:
            store.discard(nodes[name].artifact, ["*.bin"])
        for name in state["missing"]:
            store.remove(nodes[name].artifact)
        for i in range(state["partials"]):
            (store.root / "train" / f"train-{i}-0123456789ab.partial").mkdir()
        before, artifacts = sums(study.folder), {a.name: a for a in store.all()}
        to_run = study.evaluate().to_run
        dry = clean_run(study, other_versions=state["other_versions"], elsewhere=state["from_elsewhere"])
        assert sums(study.folder) == before
        done = clean_run(study, really=True, other_versions=state["other_versions"], elsewhere=state["from_elsewhere"])
        assert done.entries == dry.entries and done.failed == ()

        named = {entry.name.removeprefix("artifacts/") for entry in done.going}
        after = sums(study.folder)
        assert {n for n in before if before[n] != after.get(n) and n.partition(":")[0].rpartition("/")[0] not in named
                and n.partition(":")[0] not in named} == set()  # fmt: skip
        assert verify_run(study.folder).problems == [] and study.evaluate().to_run == to_run
        if not state["from_elsewhere"]:
            cleaned = [artifacts[n] for n in named if n in artifacts]
            assert all(a.manifest["provenance"]["cpu"]["model"] != "Other CPU" for a in cleaned)

        wanted = open_toy(here, patch, train=9, capture="keep")  # everything discarded is read again
        assert execute(wanted).exit_code == 0
        rows = {
            n: s for n, s in before.items() if n.endswith("rows.bin") and n.partition("/")[0] in ("corpus", "capture")
        }
        now = sums(study.folder)
        assert {n: now.get(n) for n in rows} == rows


def test_archive_clean_and_restore_give_the_same_store(study, tmp_path):
    before = sums(study.folder)
    made = archive_run(study, tmp_path / "a.tar.gz", everything=True)
    assert clean_run(study, really=True).freed == 3000 and sums(study.folder) != before
    assert sorted(restore_run(made.path, study.folder).published) == ["capture[0]", "capture[1]", "corpus"]
    assert sums(study.folder) == before and verify_run(study.folder).problems == []
    assert calls(study.folder).count("corpus") == 1
