"""The artifact store: complete or absent, verified to the byte, resumable, safe on a full disk."""

import errno
import json
import os
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.store.artifacts import ArtifactStore, ArtifactWriter, Problem, artifact_id

SPEC = {"layers": [1, 2], "lr": 0.1}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def begin(store: ArtifactStore, unit: str = "train[layer=1]", spec=SPEC, **inputs) -> ArtifactWriter:
    id = artifact_id("train", 1, spec, {label: a.id for label, a in inputs.items()})
    return store.writer("train", unit, id, version=1, spec=spec, inputs=inputs)


def publish(store: ArtifactStore, unit: str = "train[layer=1]", spec=SPEC, **inputs):
    writer = begin(store, unit, spec, **inputs)
    writer.write_json("a.json", {"x": 1})
    writer.write_text("deep/er/b.txt", "hello")
    writer.file("big.bin").write_bytes(bytes(1000))
    return writer.publish({"device": "cpu"})


def test_a_published_artifact_is_found_and_verifies_and_holds_its_files(store):
    artifact = publish(store)
    stored = store.find("train", "train[layer=1]", artifact.id)
    assert stored == artifact and stored.verify() == [] and store.verify() == []
    assert stored.path == store.root / "train" / f"train-layer-1-{artifact.id[:12]}"
    assert stored.read_json("a.json") == {"x": 1}
    assert stored.file("deep/er/b.txt").read_text() == "hello"
    assert set(stored.manifest["files"]) == {"a.json", "deep/er/b.txt", "big.bin"}
    assert store.all() == [artifact]


def test_the_manifest_says_what_it_was_made_from_and_how(store):
    first = publish(store)
    second = publish(store, unit="second", data=first)
    manifest = second.manifest
    assert manifest["inputs"] == {"data": {"id": first.id, "path": f"train/{first.path.name}"}}
    assert manifest["spec"] == SPEC and manifest["version"] == 1 and manifest["runtime"] == {"device": "cpu"}
    assert manifest["seconds"] >= 0 and manifest["peak_rss_bytes"] > 1_000_000
    assert manifest["provenance"]["packages"]["pydantic"]


def test_a_manifest_holds_no_absolute_path(store, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", [f"{tmp_path}/bin/mechstudy", f"--out={tmp_path}/x"])
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(tmp_path))
    from mechstudy.store import provenance

    provenance.fixed_provenance.cache_clear()
    artifact = publish(store, data=publish(store, unit="first"))
    provenance.fixed_provenance.cache_clear()
    text = (artifact.path / "manifest.json").read_text()
    assert str(tmp_path) not in text and "..." in text


def test_a_dropped_writer_leaves_nothing_to_find_and_its_files_to_resume(store):
    writer = begin(store)
    writer.write_text("a.txt", "half")
    (writer.scratch / "checkpoint").write_text("step 3")
    id = writer.id
    del writer  # the process was killed
    assert store.find("train", "train[layer=1]", id) is None and store.all() == [] and store.verify() == []
    assert store.partial("train", "train[layer=1]", id) is not None
    again = begin(store)
    assert (again.path / "a.txt").read_text() == "half"
    assert (again.scratch / "checkpoint").read_text() == "step 3"
    artifact = again.publish({})
    assert artifact.manifest["sessions"] == 2
    assert sorted(artifact.manifest["files"]) == ["a.txt"]  # no scratch
    assert sorted(p.name for p in artifact.path.iterdir()) == ["a.txt", "manifest.json"]
    assert store.partial("train", "train[layer=1]", id) is None


def test_a_crash_between_manifest_and_rename_is_no_artifact(store, monkeypatch):
    writer = begin(store)
    monkeypatch.setattr(writer, "_rename", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        writer.publish({})
    assert store.find("train", "train[layer=1]", writer.id) is None and store.all() == []
    assert not (begin(store).path / "manifest.json").exists()
    assert begin(store).publish({}).verify() == []


def test_temporaries_of_a_killed_write_are_not_published(store):
    writer = begin(store)
    writer.file("deep/.a.json.tmp-99999").write_text("half")
    assert writer.publish({}).manifest["files"] == {}


def test_verify_names_missing_shortened_changed_and_a_touched_manifest(store):
    artifact = publish(store)
    name = artifact.name
    artifact.file("a.json").unlink()
    artifact.file("deep/er/b.txt").write_text("hell")
    (artifact.path / "big.bin").write_bytes(bytes(999) + b"\1")
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    (artifact.path / "manifest.json").write_text(json.dumps(manifest | {"seconds": 0}, indent=2) + "\n")
    assert artifact.verify() == [
        Problem(name, "manifest.json", "manifest"),
        Problem(name, "a.json", "missing"),
        Problem(name, "big.bin", "checksum"),
        Problem(name, "deep/er/b.txt", "size"),
    ]
    assert store.verify() == artifact.verify()
    assert str(Problem(name, "a.json", "missing")) == f"{name}/a.json: missing"


def test_verify_sees_a_manifest_that_only_changed_its_spaces(store):
    artifact = publish(store)
    text = (artifact.path / "manifest.json").read_text()
    (artifact.path / "manifest.json").write_text(text.replace("  ", "\t ", 1))
    assert artifact.verify() == [Problem(artifact.name, "manifest.json", "manifest")]


@pytest.mark.slow
def test_a_flip_of_any_byte_of_a_manifest_is_its_problem_and_no_error(store):
    artifact = publish(store, data=publish(store, unit="first"))
    path = artifact.path / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 7
        path.write_bytes(bytes(flipped))
        assert Problem(artifact.name, "manifest.json", "manifest") in store.verify(), flipped[place - 20 : place + 20]
        store.all()
    path.write_bytes(whole)
    assert store.verify() == []


def test_verify_reports_a_manifest_that_cannot_be_read(store):
    artifact = publish(store)
    (artifact.path / "manifest.json").write_text("{")
    assert store.verify() == [Problem(artifact.name, "manifest.json", "manifest")]


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest"])
def test_a_damaged_artifact_is_absent_until_the_next_publish_replaces_it(store, damage):
    artifact = publish(store)
    if damage == "cut":
        (artifact.path / "big.bin").write_bytes(b"")
    elif damage == "gone":
        artifact.file("a.json").unlink()
    else:
        (artifact.path / "manifest.json").write_text("[]")
    assert store.find("train", "train[layer=1]", artifact.id) is None
    again = publish(store)
    assert again.path == artifact.path and again.verify() == []
    assert [p.name for p in artifact.path.parent.iterdir()] == [artifact.path.name]


def test_another_id_with_the_same_first_twelve_digits_is_not_found(store):
    artifact = publish(store)
    assert store.find("train", "train[layer=1]", artifact.id[:12] + "0" * 52) is None


def test_of_two_writers_the_first_to_publish_is_kept(store):
    writer = begin(store)
    aside = writer.path.rename(writer.path.with_name("aside"))
    first = publish(store)
    before = (first.path / "manifest.json").read_bytes()
    aside.rename(writer.path)
    assert writer.publish({"device": "other"}).read_json("a.json") == {"x": 1}
    assert (first.path / "manifest.json").read_bytes() == before and not writer.path.exists()


def test_an_id_that_is_not_of_the_inputs_is_refused(store):
    with pytest.raises(AssertionError):
        store.writer("train", "u", "0" * 64, version=1, spec=SPEC, inputs={})


def test_files_stay_inside_the_artifact(store):
    writer = begin(store)
    for name in ("/etc/x", "../x", "a/../../x", "manifest.json", ".scratch/x", ""):
        with pytest.raises(AssertionError):
            writer.file(name)
    (writer.path / "link").symlink_to("/etc/hostname")
    with pytest.raises(AssertionError, match="not links"):
        writer.publish({})


def test_an_absent_file_names_the_artifact_and_what_it_holds(store):
    artifact = publish(store)
    with pytest.raises(MechstudyError) as caught:
        artifact.file("c.json")
    assert str(caught.value) == (f"{artifact.path}: has no file c.json\n  files: a.json, big.bin, deep/er/b.txt")


def test_discard_deletes_payload_and_keeps_the_record(store):
    artifact = publish(store)
    assert store.discard(artifact, ["*.bin", "deep/*"]) == 1005
    left = store.find("train", "train[layer=1]", artifact.id)
    assert left is not None and left.is_discarded and artifact.is_discarded
    assert left.verify() == [] and store.verify() == []
    assert left.manifest["discarded"] == ["big.bin", "deep/er/b.txt"]
    assert left.manifest["files"]["big.bin"]["size"] == 1000
    with pytest.raises(MechstudyError, match=r"big\.bin was discarded to save space"):
        left.file("big.bin")
    assert store.discard(left, ["*.bin"]) == 0
    assert publish(store).is_discarded is False  # computed again, it replaces the discarded one


def test_discarding_nothing_changes_nothing(store):
    artifact = publish(store)
    assert store.discard(artifact, ["*.nothing"]) == 0 and not artifact.is_discarded


def test_remove_leaves_nothing(store):
    artifact = publish(store)
    store.remove(artifact)
    assert store.all() == [] and not artifact.path.exists()


def _full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "place", ["mechstudy.store.artifact_writer.fsync_file", "mechstudy.core.files.fsync_file", "pathlib.Path.mkdir"]
)
def test_a_full_disk_is_named_with_bytes_free_and_nothing_looks_complete(store, monkeypatch, place):
    writer = begin(store)
    writer.file("a.txt").write_text("x")
    with monkeypatch.context() as full:
        full.setattr(place, _full)
        with pytest.raises(MechstudyError) as caught:
            writer.file("b/c.txt")
            writer.publish({})
    text = str(caught.value)
    assert text.startswith(f"{writer.path}: the disk is full") and " bytes\n" in text
    assert store.find("train", "train[layer=1]", writer.id) is None and store.all() == []
    assert publish(store).verify() == []  # after space was made


def test_a_full_disk_in_a_librarys_own_exception_is_recognised(tmp_path):
    from mechstudy.core.files import disk_errors

    with pytest.raises(MechstudyError, match="the disk is full"), disk_errors(tmp_path):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="shape"), disk_errors(tmp_path):
        raise RuntimeError("shape mismatch")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device_is_recognised(tmp_path):
    from mechstudy.core.files import disk_errors

    with pytest.raises(MechstudyError, match="the disk is full"), disk_errors(tmp_path):
        Path("/dev/full").write_text("x")
