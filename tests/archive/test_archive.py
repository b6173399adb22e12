"""archive and restore: what is kept in one file, checked byte by byte, and nothing overwritten on the way back."""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import tarfile
from pathlib import Path

import pytest

from mechstudy.archive import archive as archiving
from mechstudy.archive import restore as restoring
from mechstudy.archive.archive import archive_run, tar_size
from mechstudy.archive.index import CONTENTS
from mechstudy.archive.restore import restore_run
from mechstudy.archive.tar import read_archive, read_contents
from mechstudy.archive.verify import verify_run
from mechstudy.archive.writer import gather
from mechstudy.core.errors import MechstudyError
from mechstudy.runner.study_run import execute
from mechstudy.store.artifacts import ArtifactStore
from mechstudy.store.lock import RunLock
from tests.support.storage_world import make_folder, open_toy, sums
from tests.support.toy_units import calls


def names(file: Path) -> list[str]:
    with tarfile.open(file) as tar:
        return tar.getnames()


# -------------------------------------------------------------------------------------------------- archive


def test_manifests_of_everything_and_payload_of_what_is_kept(study, tmp_path):
    made = archive_run(study, tmp_path / "a.tar.gz")
    packed = names(made.path)
    assert packed[0] == CONTENTS and packed[1:] == sorted(packed[1:])
    assert {"study.yaml", "texts/a.txt", "requirements.txt", "summary.json"} <= set(packed)
    assert sum(name.endswith("/manifest.json") for name in packed) == 9
    assert not [name for name in packed if name.endswith("rows.bin")]
    whole = {unit.name for unit in made.contents.units if unit.whole}
    assert whole == {"model", "prompts[b]", "train[0]", "train[1]", "pages", "report"}
    assert made.left_out == 3000
    assert (
        len([n for n in names(archive_run(study, tmp_path / "all", everything=True).path) if n.endswith("rows.bin")])
        == 3
    )


def test_the_same_run_gives_the_same_bytes_and_no_absolute_path(study, tmp_path):
    files = [archive_run(study, tmp_path / f"{i}.tar", compression="none").path for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert str(tmp_path).encode() not in files[0].read_bytes()
    zipped = [archive_run(study, tmp_path / f"{i}.tar.gz").path.read_bytes() for i in range(2)]
    assert zipped[0] == zipped[1] and gzip.decompress(zipped[0]) == files[0].read_bytes()
    with tarfile.open(files[0]) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}


def test_the_size_is_known_before(study):
    packing = gather(study)
    made = archive_run(study, compression="none", out=study.folder.parent / "x.tar")
    assert made.size <= tar_size(packing) <= made.size + 10_240


def test_nothing_is_overwritten_and_the_folder_is_left_as_it_was(study, tmp_path):
    (tmp_path / "there").write_text("mine")
    with pytest.raises(MechstudyError, match="already exists"):
        archive_run(study, tmp_path / "there")
    assert (tmp_path / "there").read_text() == "mine" and [p.name for p in tmp_path.glob(".*")] == []


def test_file_that_appears_while_packing_is_not_overwritten(study, tmp_path, monkeypatch):
    write = archiving.write_tar

    def slow(*arguments):
        write(*arguments)
        (tmp_path / "a").write_text("mine")

    monkeypatch.setattr(archiving, "write_tar", slow)
    with pytest.raises(MechstudyError, match="already exists"):
        archive_run(study, tmp_path / "a")
    assert (tmp_path / "a").read_text() == "mine" and not list(tmp_path.glob(".a.tmp-*"))


def test_a_flipped_byte_is_not_packed(study, tmp_path):
    artifact = study.evaluate().nodes["train[0]"].artifact
    file = artifact.path / "digest"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    with pytest.raises(MechstudyError, match="does not match its checksum"):
        archive_run(study, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_bad_write_is_found_by_reading_back(study, tmp_path, monkeypatch):
    write = archiving.write_tar

    def flipped(temporary, *rest):
        write(temporary, *rest)
        data = bytearray(temporary.read_bytes())
        data[len(data) // 2] ^= 4
        temporary.write_bytes(data)

    monkeypatch.setattr(archiving, "write_tar", flipped)
    with pytest.raises(MechstudyError, match="damaged"):
        archive_run(study, tmp_path / "a", compression="none")
    assert not (tmp_path / "a").exists() and not list(tmp_path.glob(".a.tmp-*"))


def test_small_disk_is_refused_and_a_full_disk_leaves_nothing(study, tmp_path, monkeypatch):
    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
        with pytest.raises(MechstudyError, match="too small for the archive"):
            archive_run(study, tmp_path / "a", compression="none")
        archive_run(study, tmp_path / "b")  # compressed it may fit: it is tried

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archiving, "add_item", full)
    with pytest.raises(MechstudyError, match="the disk is full"):
        archive_run(study, tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "here"]


def test_a_run_in_use_is_refused(study, tmp_path):
    with RunLock(study.folder), pytest.raises(MechstudyError, match="already running"):
        archive_run(study, tmp_path / "a")


def test_text_outside_the_study_needs_without_sources(study, tmp_path, monkeypatch):
    (tmp_path / "far.txt").write_text("far")
    file = study.file
    file.write_text(file.read_text().replace("text:texts/a.txt", f"text:{tmp_path}/far.txt"))
    opened = open_toy(file.parent, monkeypatch)
    with pytest.raises(MechstudyError, match="not below its own folder"):
        archive_run(opened, tmp_path / "a")
    packed = names(archive_run(opened, tmp_path / "a", sources=False).path)
    assert [name for name in packed if name.endswith("rows.bin")] == [
        f"artifacts/{opened.evaluate().nodes['corpus'].artifact.name}/rows.bin"
    ]


# -------------------------------------------------------------------------------------------------- restore


def test_restored_run_verifies_and_reruns_only_missing_payload(study, tmp_path, monkeypatch):
    made = archive_run(study, tmp_path / "a.tar.gz")
    there = tmp_path / "there"
    done = restore_run(made.path, there)
    assert len(done.published) == 9 and sums(there, payload=False) == sums(study.folder, payload=False)
    assert verify_run(there).problems == []
    make_folder(tmp_path / "model-only")
    (tmp_path / "model-only" / "model").rename(there / "model")  # weights are not packed
    again = open_toy(there, monkeypatch, run=there)
    assert again.evaluate().to_run == []
    assert (there / "report").exists()
    changed = open_toy(there, monkeypatch, run=there, train=1)
    assert execute(changed, ["train[0]"]).ran == ["corpus", "capture[0]", "train[0]"]
    assert sorted(calls(there)) == ["capture[0]", "corpus", "train[0]"]


def test_restore_overwrites_nothing(study, tmp_path):
    made = archive_run(study, tmp_path / "a.tar.gz", everything=True)
    there = tmp_path / "there"
    restore_run(made.path, there)
    assert sums(there) == sums(study.folder)
    assert restore_run(made.path, there).published == []
    store = ArtifactStore(there / "artifacts")
    artifact = next(a for a in store.all() if a.unit == "train[1]")
    writer = artifact.manifest["files"]["digest"]
    writer["sha256"] = "0" * 64
    from mechstudy.store.manifest import write_manifest

    write_manifest(artifact.path, artifact.manifest)
    before = sums(there)
    with pytest.raises(MechstudyError, match="differs from the packed one"):
        restore_run(made.path, there)
    assert sums(there) == before and not list(there.glob(".restore-*"))


def test_restore_brings_back_discarded_payload(study, tmp_path):
    slim, whole = archive_run(study, tmp_path / "slim"), archive_run(study, tmp_path / "whole", everything=True)
    before = sums(study.folder)
    assert restore_run(slim.path, study.folder).published == [] and sums(study.folder) == before
    corpus = study.evaluate().nodes["corpus"].artifact
    study.evaluate().store.discard(corpus, ["*.bin"])
    assert restore_run(whole.path, study.folder).published == ["corpus"] and sums(study.folder) == before


def test_a_disk_that_fills_up_while_restoring_changes_nothing(study, tmp_path, monkeypatch):
    made = archive_run(study, tmp_path / "a")

    def full(*_, **__):
        raise OSError(122, "Disk quota exceeded")

    with monkeypatch.context() as broken:
        broken.setattr(restoring, "unpack", full)
        with pytest.raises(MechstudyError, match="quota"):
            restore_run(made.path, tmp_path / "there")
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["lock"]
    assert restore_run(made.path, tmp_path / "there").published


def rewritten(file: Path, out: Path, change) -> Path:
    """The archive with a change to its members: (info, data) -> list of (info, data)."""
    with tarfile.open(file) as source, tarfile.open(out, "w") as target:
        for info in source:
            data = source.extractfile(info).read()
            for member, content in change(info, data):
                member.size = len(content)
                target.addfile(member, io.BytesIO(content))
    return out


def special(name: str, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "member",
    [
        special("../escaped"),
        special("/tmp/escaped"),
        special("artifacts/../../escaped"),
        special("artifacts/link", type=tarfile.SYMTYPE, linkname="/etc"),
        special("artifacts/hard", type=tarfile.LNKTYPE, linkname="../../x"),
        special("artifacts/pipe", type=tarfile.FIFOTYPE),
        special("artifacts/disk", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        special("artifacts/folder", type=tarfile.DIRTYPE),
        special("lock"),
        special("study.yaml"),
    ],
    ids=lambda m: m.name,
)
def test_archive_with_unsafe_members_publishes_nothing(study, tmp_path, member):
    made = archive_run(study, tmp_path / "a")
    inside = tmp_path / "there"
    bad = rewritten(
        made.path, tmp_path / "bad", lambda i, d: [(i, d)] if i.name != "summary.json" else [(i, d), (member, b"")]
    )
    before = set(tmp_path.rglob("*"))
    with pytest.raises(MechstudyError):
        restore_run(bad, inside)
    assert set(tmp_path.rglob("*")) - before <= {inside, inside / "lock"}


@pytest.mark.parametrize("name", ["../x", "/x", "artifacts/../../x", "report/x", "artifacts/a/b/c", "x\\..\\y", "a//b"])
def test_a_list_that_names_such_a_file_is_refused(study, tmp_path, name):
    made = archive_run(study, tmp_path / "a")

    def listed(info, data):
        if info.name == CONTENTS:
            found = json.loads(data)
            found["files"][name] = {"sha256": "0" * 64, "size": 0}
            found["sources"].append(name)
            data = json.dumps(found).encode()
        return [(info, data)]

    with pytest.raises(MechstudyError, match="archive"):
        read_contents(rewritten(made.path, tmp_path / "bad", listed))


def test_changed_and_resigned_manifest_is_refused(study, tmp_path):
    from mechstudy.core.jsonio import json_bytes
    from mechstudy.store.manifest import sha256_of, sign

    made = archive_run(study, tmp_path / "a")
    target = next(n for n in names(made.path) if n.startswith("artifacts/train") and n.endswith("manifest.json"))

    def changed(data: bytes) -> bytes:
        return json_bytes(sign({**json.loads(data), "spec": {"value": "other"}}))

    def change(info, data):
        if info.name == target:
            data = changed(data)
        if info.name == CONTENTS:
            found = json.loads(data)
            with tarfile.open(made.path) as tar:
                new = changed(tar.extractfile(target).read())
            (tmp_path / "new").write_bytes(new)
            found["files"][target] = {"sha256": sha256_of(tmp_path / "new"), "size": len(new)}
            data = json.dumps(found).encode()
        return [(info, data)]

    with pytest.raises(MechstudyError, match="is invalid"):
        restore_run(rewritten(made.path, tmp_path / "bad", change), tmp_path / "there")
    assert not (tmp_path / "there" / "artifacts").exists()


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_random_damage_is_refused_or_harmless(study, tmp_path, compression):
    """Flipped, cut, repeated bytes: an error in plain words with nothing published, or just what was packed."""
    made = archive_run(study, tmp_path / "a", compression=compression)
    whole, draw = made.path.read_bytes(), random.Random(0)
    good = {name: b"".join(stream) for name, stream in read_archive(made.path)}
    refused = 0
    for i in range(60):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(data))
            kind = draw.randrange(4)
            if kind == 0:
                data[place] ^= 1 << draw.randrange(8)
            elif kind == 1:
                del data[place:]
                data.extend(b"\0")
            elif kind == 2:
                data[place : place + 512] = data[:512]
            else:
                data[place:place] = draw.randbytes(draw.randint(1, 600))
        file = tmp_path / f"bad-{i}"
        file.write_bytes(data)
        try:
            found = {name: b"".join(stream) for name, stream in read_archive(file)}
        except MechstudyError:
            refused += 1
            if i > 20:
                continue
            with pytest.raises(MechstudyError):
                restore_run(file, tmp_path / "there")
            assert not (tmp_path / "there" / "artifacts").exists() and not list((tmp_path / "there").glob(".restore*"))
        else:
            assert found == good
    assert refused > 40


def test_restored_run_knows_its_model_before_it_is_fetched(tmp_path, monkeypatch):
    """Ids are of the weights' bytes: on another machine they come from the run itself, and status is right at once."""
    from mechstudy.planning import opened_study as opening
    from mechstudy.planning.opened_study import open_study
    from mechstudy.store.artifacts import artifact_id
    from tests.support.toy_model import CONFIG

    here = make_folder(tmp_path / "here")
    (here / "study.yaml").write_text((here / "study.yaml").read_text().replace("path:model", "hf:owner/name"))
    monkeypatch.setattr(opening, "local_folder", lambda *_: None)
    monkeypatch.setattr(opening, "config_without_fetching", lambda *_: CONFIG)

    def fingerprint() -> str:
        return open_study(here / "study.yaml", out=here / "run").units[0].spec.fingerprint

    assert fingerprint() == "not fetched"
    store = ArtifactStore(here / "run" / "artifacts")
    for source, made in (("hf:other/name", "x"), ("hf:owner/name", "of these weights")):
        spec = {"source": source, "fingerprint": made}
        id = artifact_id("model", 1, spec, {})
        store.writer("model", "model", id, version=1, spec=spec, inputs={}).publish({})
        assert fingerprint() == ("not fetched" if made == "x" else made)
    spec = {"source": "hf:owner/name", "fingerprint": "of others"}
    store.writer("model", "model", artifact_id("model", 1, spec, {}), version=1, spec=spec, inputs={}).publish({})
    assert fingerprint() == "not fetched"


def test_zstd_comes_back_too_and_its_damage_is_found(study, tmp_path):
    made = [archive_run(study, tmp_path / f"{i}.zst", compression="zstd").path for i in range(2)]
    whole = made[0].read_bytes()
    assert whole == made[1].read_bytes() and whole[:4] == b"\x28\xb5\x2f\xfd"
    restore_run(made[0], tmp_path / "there")
    assert sums(tmp_path / "there", payload=False) == sums(study.folder, payload=False)
    middle = len(whole) // 2
    for bad in (whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], whole[:-7]):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(MechstudyError):
            restore_run(tmp_path / "bad", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / "artifacts").exists()
