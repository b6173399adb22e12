"""clean: what goes can be made again, what cannot stays and says why, and nothing else is missing after it."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechstudy.archive.archive import archive
from mechstudy.archive.clean import clean
from mechstudy.archive.rebuildable import Remaking
from mechstudy.archive.restore import restore
from mechstudy.archive.verify import verify_run
from mechstudy.core.errors import MechstudyError
from mechstudy.runner.study_run import execute
from mechstudy.store import artifacts as core
from mechstudy.store.artifacts import ArtifactStore
from mechstudy.store.lock import RunLock
from mechstudy.store.manifest import write_manifest
from tests.support.storage_world import copy_of, finished_study, open_toy, sums
from tests.support.toy_units import calls


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return finished_study(tmp_path_factory.mktemp("toy") / "here")


@pytest.fixture
def study(finished, tmp_path, monkeypatch):
    return copy_of(finished, tmp_path / "here", monkeypatch)


def going(found) -> set[tuple[str, str]]:
    return {(entry.what, entry.name.split("/")[-1].rpartition("-")[0] or entry.name) for entry in found.going}


def changed(study, unit: str, change) -> None:
    """A manifest with something else in it, soundly signed."""
    artifact = study.run().evaluate().nodes[unit].artifact
    change(artifact.manifest)
    write_manifest(artifact.path, artifact.manifest)


def test_a_dry_run_changes_nothing_and_says_how_much_and_how_long(study):
    before = sums(study.folder)
    found = clean(study)
    assert going(found) == {("payload", "corpus"), ("payload", "capture-0"), ("payload", "capture-1")}
    assert all(entry.bytes == 1000 and entry.seconds is not None for entry in found.going)
    assert sums(study.folder) == before and found.freed == 0


def test_payload_goes_and_only_what_needs_it_makes_it_again(study, monkeypatch):
    before = sums(study.folder, payload=False)
    assert clean(study, really=True).freed == 3000
    assert sums(study.folder, payload=False) == before and verify_run(study.folder).problems == []
    assert study.run().evaluate().to_run == [] and clean(study).going == []
    ran = execute(open_toy(study.file.parent, monkeypatch, train=1), ["train[1]"]).ran
    assert ran == ["corpus", "capture[1]", "train[1]"]


def test_payload_that_somebody_still_needs_stays(study):
    store = study.run().folder.store
    store.remove(study.run().evaluate().nodes["train[1]"].artifact)
    found = clean(study, really=True)
    assert going(found) == {("payload", "capture-0"), ("payload", "corpus"), ("leftover", "train-1")}
    kept = {entry.name.split("/")[-1].rpartition("-")[0]: entry.kept for entry in found.entries if entry.kept}
    assert kept == {"capture-1": "train[1] still needs it"} and study.run().evaluate().to_run == ["train[1]"]


def test_what_another_machine_or_torch_has_made_stays_until_asked_for(study):
    changed(study, "capture[0]", lambda m: m["provenance"]["cpu"].update(model="Other CPU"))
    changed(study, "corpus", lambda m: m["provenance"]["packages"].update(torch="1.0"))
    kept = {entry.name.split("/")[-1].rpartition("-")[0]: entry.kept for entry in clean(study).entries}
    assert "on another machine (Other CPU)" in kept["capture-0"] and "with another torch (1.0)" in kept["corpus"]
    assert "could not be made again" in kept["capture-1"], "its corpus might be needed"
    assert len(clean(study, elsewhere=True).going) == 3


def test_an_artifact_whose_input_is_missing_stays(study):
    corpus = study.run().evaluate().nodes["corpus"].artifact
    entry = study.run().folder.store.all()
    remaking = Remaking(study, [artifact for artifact in entry if artifact.id != corpus.id])
    capture = study.run().evaluate().nodes["capture[0]"].artifact
    assert remaking.obstacle(capture) == "its input corpus is not there"


@pytest.mark.parametrize(
    ("unit", "spec", "why"),
    [
        ("corpus", {"source": "text:texts/a.txt", "tokens": 9, "fingerprint": "old"}, "has changed: a.txt"),
        ("corpus", {"source": "text:texts/gone.txt", "tokens": 9, "fingerprint": "old"}, "is gone"),
        ("corpus", {"source": "hf:owner/text", "tokens": 9, "fingerprint": ""}, "without a revision"),
        ("corpus", {"source": "hf:owner/text@abc", "tokens": 9, "fingerprint": ""}, None),
        ("prompts[b]", {"file": "gone.jsonl", "sha256": "x"}, "the file it was read from is gone: gone.jsonl"),
        ("prompts[b]", {"file": "study.yaml", "sha256": "x"}, "the file it was read from has changed"),
        ("model", {"source": "path:other", "fingerprint": "x"}, "not the study's any more"),
    ],
)
def test_what_was_read_from_a_file_that_is_gone_or_has_changed_stays(study, unit, spec, why):
    artifact = study.run().evaluate().nodes[unit].artifact
    artifact.manifest["spec"] = spec
    found = Remaking(study, [artifact, *study.run().folder.store.all()]).obstacle(artifact)
    assert found is None if why is None else why in found


def test_another_version_of_the_code_is_an_obstacle(study):
    artifact = study.run().evaluate().nodes["train[0]"].artifact
    artifact.manifest["version"] = 7
    assert "another version of the code (train 7)" in Remaking(study, [artifact]).obstacle(artifact)


def test_other_versions_are_listed_apart_and_go_only_when_asked_for(study, monkeypatch):
    newer = open_toy(study.file.parent, monkeypatch, train=1)
    execute(newer)
    found = clean(newer, really=True)
    listed = [entry for entry in found.entries if entry.what == "other version"]
    assert len(listed) == 4 and all(entry.kept == "--other-versions lets it go" for entry in listed)
    assert len(study.run().folder.store.all()) == 13
    assert len([e for e in clean(newer, really=True, other_versions=True).going if e.what == "other version"]) == 4
    assert len(study.run().folder.store.all()) == 9 and newer.run().evaluate().to_run == []
    noted = [json.loads(line) for line in (study.folder / "cleaned.jsonl").read_text().splitlines()]
    assert {line["unit"] for line in noted} == {"train[0]", "train[1]", "pages", "report"}
    assert next(line["spec"] for line in noted if line["unit"] == "train[0]") == {"value": 0}


def test_the_report_that_is_shown_stays(study, monkeypatch):
    newer = open_toy(study.file.parent, monkeypatch, train=1)
    execute(newer, ["train[0]"])
    kept = [e.kept for e in clean(newer, other_versions=True).entries if "/report/" in e.name]
    assert kept == ["it is the report that the run's folder shows"]


def test_unfinished_work_goes_where_no_unit_would_go_on_with_it(study, monkeypatch):
    folder = study.run().evaluate().nodes["train[0]"].artifact.path
    (folder.parent / "train-0-0123456789ab.partial").mkdir()
    ((folder.parent / "train-0-0123456789ab.partial") / "x").write_text("of another version")
    folder.with_name(folder.name + ".partial").mkdir()  # left of a finished unit
    newer = open_toy(study.file.parent, monkeypatch, train=1)
    node = newer.run().evaluate().nodes["train[0]"]
    mine = newer.run().folder.store.folder("train", "train[0]", node.id)
    mine.with_name(mine.name + ".partial").mkdir()
    found = clean(newer, really=True)
    assert {e.name for e in found.going if e.what == "unfinished"} == {
        f"artifacts/train/{name}.partial" for name in ("train-0-0123456789ab", folder.name)
    }
    assert mine.with_name(mine.name + ".partial").exists()


def test_damaged_copies_leftovers_and_profiles(study):
    nodes = study.run().evaluate().nodes
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
    found = clean(study, really=True)
    names = {Path(entry.name).name: entry.kept for entry in found.entries}
    assert names[f"{train.name}.damaged"] is None and names[f"{train.name}.replaced"] is None
    assert names["profile"] is None and names[".restore-1"] is None
    assert "only copy" in names[f"{corpus.name}.replaced"] and "cannot be read" in names[bad.name]
    assert not (study.folder / "profile").exists() and bad.exists() and not train.with_suffix(".damaged").exists()


def test_a_run_in_use_is_refused_and_so_is_a_second_clean(study):
    with RunLock(study.folder), pytest.raises(MechstudyError, match="already running"):
        clean(study, really=True)
    with RunLock(study.folder, shared=True), pytest.raises(MechstudyError, match="jobs of this study"):
        clean(study, really=True)


def test_on_a_full_disk_payload_goes_before_its_manifest_can_say_so(study, monkeypatch):
    write, full = core.write_manifest, []

    def tight(folder, manifest):
        if (folder / "rows.bin").exists():
            full.append(folder)
            raise MechstudyError("the disk is full") from OSError(errno.ENOSPC, "No space left on device")
        write(folder, manifest)

    monkeypatch.setattr(core, "write_manifest", tight)
    found = clean(study, really=True)
    assert len(full) == 3 and found.freed == 3000 and found.failed == ()
    assert verify_run(study.folder).problems == [] and study.run().evaluate().to_run == []


def test_one_thing_that_cannot_be_deleted_does_not_keep_the_others(study, monkeypatch):
    discard = ArtifactStore.discard

    def stubborn(self, artifact, patterns):
        if artifact.unit == "corpus":
            raise PermissionError(errno.EACCES, "Permission denied")
        return discard(self, artifact, patterns)

    monkeypatch.setattr(ArtifactStore, "discard", stubborn)
    found = clean(study, really=True)
    assert found.freed == 2000 and next(name for name, _ in found.failed).startswith("artifacts/corpus/")


@pytest.mark.parametrize(("times", "told"), [(1, False), (2, True)])
def test_a_stale_handle_is_tried_again_and_then_told_not_taken_for_a_missing_artifact(study, monkeypatch, times, told):
    read, left = Path.read_bytes, [times]

    def stale(self):
        if self.name == "manifest.json" and left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", stale)
    if told:
        with pytest.raises(MechstudyError, match="Stale file handle"):
            study.run().evaluate()
    else:
        assert study.run().evaluate().to_run == []


@pytest.mark.parametrize(("times", "told"), [(1, False), (2, True)])
def test_a_stale_handle_is_no_damage_to_verify(study, monkeypatch, times, told):
    opens, left = Path.open, [times]

    def stale(self, *arguments, **options):
        if self.name == "rows.bin" and left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return opens(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", stale)
    if told:
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
def test_whatever_the_state_what_was_cleaned_can_be_made_again_and_nothing_else_is_missing(
    finished, tmp_path_factory, state
):
    with pytest.MonkeyPatch.context() as patch:
        here = tmp_path_factory.mktemp("state") / "here"
        shutil.copytree(finished, here, symlinks=True)
        for version in state["versions"]:
            execute(open_toy(here, patch, train=version, capture=state["capture"]))
        last = (state["versions"] or [0])[-1]
        study = open_toy(here, patch, train=last, capture=state["capture"])
        nodes = study.run().evaluate().nodes
        store = study.run().folder.store
        for name in state["elsewhere"]:
            changed(study, name, lambda m: m["provenance"]["cpu"].update(model="Other CPU"))
        for name in state["gone"]:
            store.discard(nodes[name].artifact, ["*.bin"])
        for name in state["missing"]:
            store.remove(nodes[name].artifact)
        for i in range(state["partials"]):
            (store.root / "train" / f"train-{i}-0123456789ab.partial").mkdir()
        before, artifacts = sums(study.folder), {a.name: a for a in store.all()}
        to_run = study.run().evaluate().to_run
        dry = clean(study, other_versions=state["other_versions"], elsewhere=state["from_elsewhere"])
        assert sums(study.folder) == before
        done = clean(study, really=True, other_versions=state["other_versions"], elsewhere=state["from_elsewhere"])
        assert done.entries == dry.entries and done.failed == ()

        named = {entry.name.removeprefix("artifacts/") for entry in done.going}
        after = sums(study.folder)
        assert {n for n in before if before[n] != after.get(n) and n.partition(":")[0].rpartition("/")[0] not in named
                and n.partition(":")[0] not in named} == set()  # fmt: skip
        assert verify_run(study.folder).problems == [] and study.run().evaluate().to_run == to_run
        if not state["from_elsewhere"]:
            cleaned = [artifacts[n] for n in named if n in artifacts]
            assert all(a.manifest["provenance"]["cpu"]["model"] != "Other CPU" for a in cleaned)

        wanted = open_toy(here, patch, train=9, capture="keep")  # everything that was let go is read again
        assert execute(wanted).exit_code == 0
        rows = {
            n: s for n, s in before.items() if n.endswith("rows.bin") and n.partition("/")[0] in ("corpus", "capture")
        }
        now = sums(study.folder)
        assert {n: now.get(n) for n in rows} == rows


def test_archive_then_clean_then_restore_leaves_a_store_that_verifies_equal(study, tmp_path):
    before = sums(study.folder)
    made = archive(study, tmp_path / "a.tar.gz", everything=True)
    assert clean(study, really=True).freed == 3000 and sums(study.folder) != before
    assert sorted(restore(made.path, study.folder).published) == ["capture[0]", "capture[1]", "corpus"]
    assert sums(study.folder) == before and verify_run(study.folder).problems == []
    assert calls(study.folder).count("corpus") == 1
