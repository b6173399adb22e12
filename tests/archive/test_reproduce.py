"""reproduce: from a handle to its artifact and the commands, made again and compared; tampering is found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mechstudy.archive.reproduce import commands, describe_number, find_number, run_again
from mechstudy.core.errors import MechstudyError
from mechstudy.planning import opened_study as opening
from mechstudy.planning.opened_study import open_study
from mechstudy.report.data import Address
from mechstudy.runner.recorded_options import AsMade, together
from mechstudy.runner.study_run import execute
from mechstudy.store.manifest import sha256_of, write_manifest
from tests.support.storage_world import make_folder
from tests.support.toy_model import mechstudy
from tests.support.toy_units import calls, unit

ACCURACY = Address("baseline[b]", "summary.json", "/splits/test/accuracy")


def units():
    return [
        unit("model"),
        unit("prompts[b]", ["model"], seed=11),
        unit("baseline[b]", ["model", "prompts[b]"], entry="baseline", passed=True, seed=12),
        unit("report", ["baseline[b]"], optional_inputs=True, reads_payload=False),
    ]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A finished study with one number in it."""
    folder = make_folder(tmp_path / "here")
    monkeypatch.setattr(opening, "build_units", lambda *_: units())
    opened = open_study(folder / "study.yaml", ["corpus.tokens=8192"], out=folder / "run")
    execute(opened)
    return opened


def artifact_of(study, name="baseline[b]"):
    return study.evaluate().nodes[name].artifact


def tamper(study, *, signed: bool) -> None:
    """Another accuracy in the file; ``signed``: with a manifest that fits it."""
    artifact = artifact_of(study)
    file = artifact.path / "summary.json"
    file.write_text(file.read_text().replace("0.5", "0.9"))
    if signed:
        artifact.manifest["files"]["summary.json"]["sha256"] = sha256_of(file)
        write_manifest(artifact.path, artifact.manifest)


def test_a_handle_and_an_address_lead_to_the_same_number(study):
    by_handle, by_address = find_number(study, ACCURACY.handle), find_number(study, str(ACCURACY))
    assert by_handle == by_address and by_handle.value == 0.5 and by_handle.problems == ()
    assert by_handle.artifact.unit == "baseline[b]" and by_handle.address == ACCURACY
    assert find_number(study, Address("baseline[b]", "summary.json", "/splits").handle).value == {
        "test": {"accuracy": 0.5}
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zzzzzzz", "no number of this study has the handle zzzzzzz"),
        ("baseline[b]/summary.json#/none", "nothing at /none"),
        ("train[1]/evaluation.json#/r2", r"no artifact of train\[1\]"),
        ("baseline[b]/other.json#/r2", "no file other.json"),
    ],
)
def test_what_is_not_there_is_told(study, name, message):
    with pytest.raises(MechstudyError, match=message):
        find_number(study, name)


def test_the_record_holds_what_it_was_made_from_and_with(study):
    facts = describe_number(study, find_number(study, ACCURACY.handle))
    assert facts["seeds"]["spec"] == {"seed": 12} and set(facts["inputs"]) == {"model", "prompts[b]"}
    assert facts["packages"]["torch"] and facts["processes"][0]["host"] and facts["artifact"].startswith("baseline/")
    assert json.loads(json.dumps(facts)) == facts


def test_commands_check_out_install_and_run_the_phase(study):
    found = find_number(study, ACCURACY.handle)
    found.artifact.manifest["provenance"]["git"] = {"commit": "abc123", "dirty": True}
    lines = commands(study, found)
    assert lines[0] == "git checkout abc123" and "uncommitted changes" in lines[1] and "torch==" in lines[3]
    again = f"--out {study.folder}-again-{ACCURACY.handle}"
    assert re.fullmatch(
        rf"mechstudy baseline \S+/study.yaml --set corpus.tokens=8192 --set compute.batch_tokens=4096 --device cpu "
        rf"--threads \d+ {re.escape(again)}",
        lines[-1],
    )


def test_rerun_from_start_or_from_inputs_is_equal(study, tmp_path):
    found = find_number(study, ACCURACY.handle)
    again = run_again(study, found)
    assert again.equal and again.files == [] and again.value == 0.5
    assert calls(again.folder) == ["model", "prompts[b]", "baseline[b]"]
    with pytest.raises(MechstudyError, match="compared with itself"):
        run_again(study, found)
    with pytest.raises(MechstudyError, match="compared with itself"):
        run_again(study, found, out=study.folder)
    alone = run_again(study, found, out=tmp_path / "alone", from_inputs=True)
    assert alone.equal and calls(alone.folder) == ["baseline[b]"]


def test_each_unit_reruns_with_its_recorded_options(tmp_path, monkeypatch):
    made = [unit("model"), unit("capture[b]", ["model"], entry="runs_as", shared="runs_as")]
    made += [unit("baseline[b]", ["capture[b]"], entry="runs_as", shared="runs_as")]
    monkeypatch.setattr(opening, "build_units", lambda *_: made)
    folder = make_folder(tmp_path / "here")
    study = open_study(folder / "study.yaml", out=folder / "run")
    execute(study, ["capture[b]"], threads=6, world_size=2, batch_tokens=512)
    execute(study, threads=2, world_size=1)
    found = find_number(study, "baseline[b]/summary.json#/how")
    assert found.value.endswith("; 2 of 3, 512; 1 of 2, 4096")
    again = run_again(study, found)
    assert again.equal and again.files == [] and again.unlike == ()
    shared, last, comment = commands(study, found)[-3:]
    assert "compute.batch_tokens=512 --set compute.world_size=2 --device cpu --threads 6" in shared
    assert "mechstudy baseline" in last and "--set compute.world_size=1 --device cpu --threads 2" in last
    assert comment.startswith("#")

    monkeypatch.setattr(AsMade, "options", lambda *_: {"device": "cpu", "threads": 2})
    otherwise = run_again(study, found, out=tmp_path / "otherwise")
    assert not otherwise.equal
    assert "made by 2 processes, now by 1 (capture[b])" in otherwise.unlike


def test_units_with_equal_options_share_one_command():
    alone, shared = AsMade("cpu", 2, None, 512), AsMade("cpu", 1, 2, 512)
    assert together({"model": alone, "capture": shared, "features": alone}) == [
        (shared, ["model", "capture", "features"])
    ]
    apart = AsMade("cpu", 2, 1, 512)
    assert [units for _, units in together({"a": apart, "b": shared, "c": alone})] == [["a"], ["b", "c"]]


def test_tampering_is_found_by_checksum_or_by_rerunning(study, tmp_path):
    tamper(study, signed=False)
    found = find_number(study, ACCURACY.handle)
    assert found.value == 0.9 and found.problems and "checksum" in found.problems[0]
    tamper(study, signed=True)
    found = find_number(study, ACCURACY.handle)
    assert found.value == 0.9 and found.problems == ()
    again = run_again(study, found)
    assert again.differing == [("", 0.9, 0.5)] and again.files == ["summary.json"] and not again.equal


def test_a_damaged_input_is_not_taken(study, tmp_path):
    artifact = artifact_of(study, "prompts[b]")
    (artifact.path / "digest").write_text("x" * artifact.manifest["files"]["digest"]["size"])
    with pytest.raises(MechstudyError, match=r"its input prompts\[b\] is damaged"):
        run_again(study, find_number(study, ACCURACY.handle), out=tmp_path / "alone", from_inputs=True)


def test_reproduce_exits_with_0_if_equal_and_2_if_different(study):
    words = ("reproduce", str(study.file), ACCURACY.handle, "--out", str(study.folder), "--set", "corpus.tokens=8192")
    printed = mechstudy(*words, "--run").output
    for text in (str(ACCURACY), "value:     0.5", "as the manifest says", "seed 12", "mechstudy baseline", "equal, to"):
        assert text in printed
    facts = json.loads(mechstudy(*words, "--json").output)
    assert facts["value"] == 0.5 and facts["commands"]
    tamper(study, signed=True)
    printed = mechstudy(*words, "--run", "--again-in", str(study.folder) + "-2", code=2).output
    assert "DIFFERS" in printed and "0.9 before, 0.5 now, by -0.4, 0.44 of it" in printed
    tampered = artifact_of(study).path / "summary.json"
    tampered.write_text(tampered.read_text().replace("0.9", "0.7"))
    assert "NOT as the manifest says" in mechstudy(*words, code=2).output


@pytest.mark.process
def test_looking_up_a_number_imports_no_torch(study):
    import subprocess
    import sys

    code = (
        "import sys\n"
        "import mechstudy.cli.maintenance, mechstudy.cli.reproduce\n"
        "import mechstudy.archive.reproduce, mechstudy.archive.archive\n"
        "import mechstudy.archive.clean, mechstudy.archive.restore\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
