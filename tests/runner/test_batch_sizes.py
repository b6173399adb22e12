"""A batch size that worked is used by the next unit of its kind, and tried again where something has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechstudy.core.jsonio import read_json
from mechstudy.core.progress import NullProgress
from mechstudy.machine.runtime import current_fitting, fitting, oom_backoff
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.planning.opened_study import open_study
from mechstudy.runner import run_unit as running
from mechstudy.runner.completion import RunResult
from mechstudy.runner.run import Run
from mechstudy.runner.slurm.frozen import identities
from mechstudy.study.unit import Unit
from tests.support.tiny_study import write_study
from tests.support.toy_units import sums, unit

pytestmark = pytest.mark.slow  # whole studies


def run(folder: Path, units: list[Unit], batch_tokens: int = 4096) -> RunResult:
    return Run(folder, units, RunOptions(batch_tokens=batch_tokens), NullProgress()).execute()


def hungry(*numbers: int, fits: int = 1500, phase: str = "capture") -> list[Unit]:
    return [unit(f"{phase}[{n}]", entry="hungry", fits=fits, n=n) for n in numbers]


def tries(folder: Path) -> int:
    return (folder / "log.txt").read_text().count("starting again with")


def test_the_next_unit_and_the_next_run_start_with_the_size_that_fitted(tmp_path):
    assert run(tmp_path, hungry(1, 2)).exit_code == 0
    assert tries(tmp_path) == 2  # 4096 -> 2048 -> 1024, once
    assert "1024 tokens per batch: more did not fit in memory before" in (tmp_path / "log.txt").read_text()
    assert run(tmp_path, hungry(1, 2, 3)).ran == ["capture[3]"] and tries(tmp_path) == 2
    assert set(sums(tmp_path)) == {f"capture[{n}]/digest" for n in (1, 2, 3)}  # nothing of it in an artifact


def test_a_unit_that_never_ran_out_is_not_remembered(tmp_path):
    run(tmp_path, hungry(1, fits=9999))
    assert not (tmp_path / running.BATCHES).exists()


def test_asking_for_more_tries_again_and_asking_for_less_gets_less(tmp_path):
    run(tmp_path, hungry(1))
    assert run(tmp_path, hungry(2, fits=8192), batch_tokens=8192).exit_code == 0 and tries(tmp_path) == 2
    run(tmp_path, hungry(3, fits=512), batch_tokens=512)
    assert tries(tmp_path) == 2


def test_a_kind_a_model_or_a_device_of_its_own_is_remembered_by_itself(tmp_path, monkeypatch):
    run(tmp_path, [unit("model", value=1), unit("capture", ["model"], entry="hungry", fits=1500)])
    assert tries(tmp_path) == 2
    run(tmp_path, [unit("model", value=2), unit("capture", ["model"], entry="hungry", fits=1500)])
    assert tries(tmp_path) == 4
    monkeypatch.setattr(running, "memory_limit_bytes", lambda: 1 << 45)
    run(tmp_path, [unit("model", value=2), unit("capture", ["model"], entry="hungry", fits=1500, again=1)])
    assert tries(tmp_path) == 6
    found = [read_json(file) for file in (tmp_path / running.BATCHES).iterdir()]
    assert len(found) == 3 and {item["batch_tokens"] for item in found} == {1024}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"batch_tokens": "many", "asked": 4096}', '{"batch_tokens": 0, "asked": 9}']
)
def test_a_damaged_file_is_as_good_as_none(tmp_path, text):
    run(tmp_path, hungry(1))
    [file] = (tmp_path / running.BATCHES).iterdir()
    file.write_text(text)
    assert run(tmp_path, hungry(2)).exit_code == 0 and tries(tmp_path) == 4
    assert read_json(file)["batch_tokens"] == 1024


def test_batches_of_one_unit_begin_with_what_fitted_the_last():
    tried = []

    def work(size):
        tried.append(size)
        if size > 4:
            raise MemoryError
        return size

    with fitting() as learned:
        assert oom_backoff(work, 16, NullProgress(), item_tokens=8) == 4
        assert oom_backoff(work, 16, NullProgress(), item_tokens=8) == 4
        assert oom_backoff(work, 16, NullProgress(), item_tokens=16) == 2
        assert learned.tokens == 32
    assert tried == [16, 8, 4, 4, 2]
    assert current_fitting().tokens is None


def test_a_studys_levers_reach_its_units_and_change_no_id(tmp_path):
    file = write_study(tmp_path)
    levers = {"checkpointing": "off", "tf32": True, "compile": "force", "stripe": 4}
    plain = open_study(file, out=tmp_path / "run")
    pulled = open_study(file, [f"compute.{name}={value}" for name, value in levers.items()], out=tmp_path / "run")
    assert identities(pulled.units) == identities(plain.units)
    options = RunOptions.from_json(pulled.options.as_json())  # as other processes get them
    artifact = Run(tmp_path, [unit("a", entry="options")], options, NullProgress()).execute().unit("a").artifact
    assert artifact is not None and artifact.read_json("options.json").items() >= levers.items()
    assert plain.options.checkpointing == plain.options.stripe == "auto"
    assert plain.options.compile == "off" and plain.options.tf32 is False
