"""The command line: exit statuses, messages, what it imports. Toy units stand in for the phases."""

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

from mechstudy.cli import options
from tests.support.toy_model import mechstudy
from tests.support.toy_units import calls, chain, unit, use

ROOT = Path(__file__).parents[2]


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


# ------------------------------------------------------------------------------------------------- help


HEAVY = ("torch", "numpy", "polars", "scipy", "psutil", "transformers", "requests", "httpx")


def imported_by(code: str) -> tuple[set[str], float, str]:
    """The modules that a new process has imported after some code, its seconds, and what it printed."""
    began = time.perf_counter()
    report = "import sys; print(*sys.modules, file=sys.stderr)"
    words = [sys.executable, "-c", f"{code}\n{report}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return set(done.stderr.split()), time.perf_counter() - began, done.stdout


@pytest.mark.process
def test_importing_the_package_imports_almost_nothing():
    modules, seconds, _ = imported_by("import mechstudy")
    assert not modules & {*HEAVY, "pydantic", "rich"}
    assert len(modules) < 200 and seconds < 5


@pytest.mark.process
def test_help_names_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['mechstudy', '--help']\n"
        "from mechstudy.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass"
    )
    modules, seconds, printed = imported_by(code)
    ours = {module for module in modules if module.startswith("mechstudy.")}
    assert not modules & {*HEAVY, "pydantic", "ruamel.yaml", "jinja2"}
    assert ours <= {
        "mechstudy._version",
        *("mechstudy.cli", "mechstudy.cli.app", "mechstudy.cli.options"),
        *("mechstudy.core", "mechstudy.core.errors", "mechstudy.core.signals"),
        *("mechstudy.study", "mechstudy.study.phases", "mechstudy.study.phases.registry"),
    }
    assert len(modules) < 800 and seconds < 10
    names = "init plan run status report validate verify corpus prompts baseline capture train attribute intervene"
    for command in names.split(" "):
        assert re.search(rf"^\W+{command}\s", printed, re.MULTILINE), command


@pytest.mark.slow
def test_the_synthetic_bench_prints_a_row_per_architecture():
    small = ("--features", "24", "--d", "12", "--l0", "2", "--steps", "20", "--json")
    rows = json.loads(mechstudy("bench", "synthetic", "-a", "topk", "-a", "gated", *small).stdout)
    assert [row["architecture"] for row in rows] == ["topk", "gated"]
    assert all(0 <= row["mcc"] <= 1 and 0 <= row["shrinkage"] < 5 for row in rows)
    refused = mechstudy("bench", "synthetic", "-a", "matroshka", code=2)
    assert "fix:        matryoshka" in refused.stderr and refused.stdout == ""


def test_the_synthetic_bench_names_its_contenders_in_its_help():
    from mechstudy.cli.bench import CONTENDERS as NAMED
    from mechstudy.dictionaries.evaluation.bench import CONTENDERS

    assert tuple(CONTENDERS) == NAMED, "help imports nothing heavy, so it has names of its own"
    assert ", ".join(NAMED) in flat(mechstudy("bench", "synthetic", "--help").output.replace("│", ""))


def test_several_trainings_of_one_world_are_compared():
    small = ("bench", "synthetic", "--features", "24", "--d", "12", "--l0", "2", "--steps", "20", "-a", "topk")
    rows = json.loads(mechstudy(*small, "--trainings", "3", "--json").stdout)
    assert [(row["training"], "stability" in row) for row in rows] == [(0, False), (1, False), (2, True)]
    assert len(rows[2]["stability"]["pairs"]) == 3
    assert 0 < rows[2]["stability"]["mean"]["decoder"]["matched"] < 1, "other starts, so other directions"
    assert len({row["true_l0"] for row in rows}) == 1, "one world"
    assert "decoder  nearest" in mechstudy(*small, "--trainings", "2").stdout


def test_dictionaries_are_compared_pair_by_pair(tmp_path):
    import torch

    from tests.support.dictionary_worlds import dictionary_of

    half = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0.6, 0.8], [0, 0, 0.8, -0.6]])
    for name, directions, site in (("a", torch.eye(4), "mlp_out.1"), ("b", half, "mlp_out.2")):
        dictionary_of(directions, site=site).save(tmp_path / name)
    names = str(tmp_path / "a"), str(tmp_path / "b")
    printed = mechstudy("dictionary", "compare", *names).stdout
    assert "decoder  nearest 0.900  matched 0.900  > .7 100.0%  > .9 50.0%" in printed
    assert "other sites: mlp_out.1 > mlp_out.1 and mlp_out.2 > mlp_out.2" in printed and "mean of" not in printed
    (tmp_path / "c").symlink_to(tmp_path / "a")
    found = json.loads(mechstudy("dictionary", "compare", *names, str(tmp_path / "c"), "--json").stdout)
    assert len(found["pairs"]) == 3
    assert found["mean"]["encoder"]["matched"] == pytest.approx((0.9 + 1.0 + 0.9) / 3)
    assert "nothing to compare" in mechstudy("dictionary", "compare", names[0], code=2).stderr
    assert "named twice" in mechstudy("dictionary", "compare", names[0], names[0], code=2).stderr


def test_version_is_printed():
    assert mechstudy("--version").output.startswith("mechstudy 0.")


@pytest.mark.parametrize("command", ["prompts", "baseline", "capture", "train", "attribute", "intervene"])
def test_every_phase_has_help_with_an_example(command):
    assert f"mechstudy {command} study.yaml" in flat(mechstudy(command, "--help").output)


# ------------------------------------------------------------------------------------------------- init


def test_init_writes_a_valid_study_and_overwrites_none(here):
    mechstudy("init", "new", "-b", "antonym", "-b", "country_capital", "--model", f"path:{here / 'model'}")
    assert "layers: 2-5" in (here / "new" / "study.yaml").read_text(), "the middle layers of this model"
    error = mechstudy("init", "new", code=2).stderr
    assert "new/study.yaml: there is a study already" in error
    plan = mechstudy("plan", "new/study.yaml", "--json", "--set", "corpus.source=text:../text.txt").stdout
    names = [row["unit"] for row in json.loads(plan)["units"]]
    assert {"baseline[antonym]", "baseline[country_capital]", "train[5]"} <= set(names)


def test_init_of_the_quickstart_model_needs_no_download(here, monkeypatch):
    monkeypatch.setenv("MECHSTUDY_CACHE", str(here / "cache"))
    mechstudy("init", "quick")
    text = (here / "quick" / "study.yaml").read_text()
    assert "layers: 10-19" in text and "subject_verb_agreement" in text
    plan = json.loads(mechstudy("plan", "quick/study.yaml", "--json").stdout)
    assert "not here yet" in plan["notes"][0]
    assert not (here / "cache" / "models").exists()


def test_init_refuses_an_unknown_behaviour_with_the_nearest(here):
    assert "did you mean antonym?" in mechstudy("init", "new", "-b", "antonyms", code=2).stderr


# ------------------------------------------------------------------------------------- plan and status


def test_plan_shows_units_sizes_and_totals(here):
    output = mechstudy("plan", "study.yaml").stdout
    for text in ("train[3]", "capture[corpus:1-2]", "not calibrated", "storage.retain.capture: keep", "runs/tiny"):
        assert text in output, output
    made = json.loads(mechstudy("plan", "study.yaml", "--json").stdout)
    assert made["time"]["calibrated"] is None and made["total"]["units"] == len(made["units"])
    assert {row["state"] for row in made["units"]} <= {"runs", "waits"}


@pytest.mark.process
def test_plan_and_status_import_no_torch_from_the_command_line(here):
    code = (
        "import sys\nfrom mechstudy.cli import main\nsys.argv = ['mechstudy', sys.argv[1], 'study.yaml']\n"
        "try: main()\n"
        "except SystemExit as exit: assert not exit.code, exit.code\n"
        "sys.exit('torch' in sys.modules)"
    )
    for command in ("plan", "status"):
        done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_disk_too_small_is_refused_by_plan_and_by_run(here, monkeypatch):
    from mechstudy.planning import disk

    monkeypatch.setattr(disk, "free_bytes", lambda folder: 1000)
    assert "the disk is too small for this study by" in mechstudy("plan", "study.yaml", code=2).stderr
    assert "the disk is too small for this study by" in mechstudy("run", "study.yaml", code=2).stderr
    assert not (here / "runs" / "tiny" / "artifacts").exists()


def test_status_shows_each_unit(here, monkeypatch):
    use(monkeypatch, chain())
    assert "5 pending" in mechstudy("status", "study.yaml").stdout
    mechstudy("run", "study.yaml")
    output = mechstudy("status", "study.yaml").stdout
    assert "5 done" in output and "artifacts/left/left-" in output
    assert json.loads(mechstudy("status", "study.yaml", "--json").stdout)["counts"] == {"done": 5}


def test_status_says_that_the_study_has_changed_since(here, monkeypatch):
    use(monkeypatch, [unit("left", n=1)])
    mechstudy("run", "study.yaml")
    use(monkeypatch, [unit("left", n=2)])
    assert "done for another version of the study" in mechstudy("status", "study.yaml").stdout


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("override", "where", "what"),
    [
        ("compute.device=cdua", "--set compute.device", "is not a device"),
        ("capture.positions=[contry]", "--set capture.positions", "did you mean 'country'?"),
        ("dictionaries.architecture={k: 4000}", "--set dictionaries.architecture", "k = 4000 active features"),
    ],
)
def test_plan_refuses_what_run_would(here, override, where, what):
    error = mechstudy("plan", "study.yaml", "--set", override, code=2).stderr
    assert where in error and what in error


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        ("name: tiny\nnmae: x\n", "study.yaml:2", "nmae"),
        ("seed: seven\n", "study.yaml:", "seed"),
        ("name: tiny\n  bad: [\n", "study.yaml:", ""),
    ],
)
def test_a_broken_study_is_refused_at_its_line_without_traceback(here, change, where, what):
    text = (here / "study.yaml").read_text()
    (here / "study.yaml").write_text(change + text.replace("name: tiny\n", "" if "name:" in change else "name: tiny\n"))
    for command in ("plan", "run", "status", "train"):
        error = mechstudy(command, "study.yaml", code=2).stderr
        assert where in error and what in error
        assert "Traceback" not in error


def test_a_layer_that_the_model_has_not_is_refused_at_its_line(here):
    file = here / "study.yaml"
    file.write_text(file.read_text().replace("capture: {layers: 2-4}", "capture: {layers: 2-6}"))
    error = mechstudy("run", "study.yaml", code=2).stderr
    assert "study.yaml:6: capture.layers: layer 6 does not exist" in error
    assert "0-5" in error


def test_missing_or_truncated_weights_are_refused_at_the_model(here):
    (here / "model" / "model.safetensors").write_bytes(b"{}")
    error = mechstudy("plan", "study.yaml", code=2).stderr
    assert "study.yaml:2: model.source" in error and "truncated" in error
    (here / "model" / "model.safetensors").unlink()
    assert "weights are not here" in mechstudy("plan", "study.yaml").stdout, "a config is enough for a plan"
    assert "holds no safetensors weights" in mechstudy("run", "study.yaml", code=2).stderr


def test_a_missing_study_is_an_error_not_a_traceback(here):
    assert "nothing.yaml" in mechstudy("run", "nothing.yaml", code=2).stderr


def test_an_unknown_option_exits_with_2(here):
    mechstudy("run", "study.yaml", "--colour", "red", code=2)


def test_with_the_debug_variable_an_error_shows_its_traceback(here, monkeypatch):
    from mechstudy.core.errors import MechstudyError

    monkeypatch.setenv("MECHSTUDY_DEBUG", "1")
    with pytest.raises(MechstudyError):
        mechstudy("run", "nothing.yaml")


# ---------------------------------------------------------------------------------------------- running


def test_run_writes_its_folder_and_a_second_run_runs_nothing(here, monkeypatch):
    use(monkeypatch, chain())
    output = mechstudy("run", "study.yaml").stdout
    assert "summary: runs/tiny/summary.json" in output
    folder = here / "runs" / "tiny"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["units"]["left"]["status"] == "done"
    assert summary["units"]["left"]["artifact"].startswith("left/left-")
    assert summary["wall_seconds"] > 0 and summary["peak_rss_bytes"] > 0
    assert (folder / "study.yaml").read_text() == (here / "study.yaml").read_text()
    assert (folder / "report").is_symlink() and not os.path.isabs(os.readlink(folder / "report"))  # noqa: PTH115, PTH117
    assert (folder / "report" / "digest").exists()
    mechstudy("run", "study.yaml")
    assert len(calls(folder)) == 5
    assert json.loads((folder / "summary.json").read_text()) == summary, "nothing ran, so its time is the first run's"


def test_out_chooses_the_run_folder(here, monkeypatch):
    use(monkeypatch, chain())
    mechstudy("run", "study.yaml", "--out", "elsewhere")
    assert (here / "elsewhere" / "summary.json").exists()
    assert not (here / "runs").exists()


def test_a_changed_unit_changes_where_the_report_link_leads(here, monkeypatch):
    use(monkeypatch, chain())
    mechstudy("run", "study.yaml")
    before = (here / "runs" / "tiny" / "report").resolve()
    use(monkeypatch, chain(right="other"))
    mechstudy("run", "study.yaml")
    assert (here / "runs" / "tiny" / "report").resolve() != before


@pytest.mark.parametrize(("entry", "code", "text"), [("refuses", 2, "fix it"), ("crashes", 1, "ZeroDivisionError")])
def test_errors_are_printed_in_full_and_set_the_exit_status(here, monkeypatch, entry, code, text):
    use(monkeypatch, [unit("left", entry=entry), unit("right")])
    result = mechstudy("run", "study.yaml", code=code)
    assert f"error: left: {'toy.yaml:3: the toy is broken' if code == 2 else text}" in result.stderr
    assert text in result.stderr and "Traceback" not in result.stderr
    assert json.loads((here / "runs/tiny/summary.json").read_text())["units"]["left"]["status"] == "failed"


def test_run_and_status_say_where_the_report_and_its_usage_page_are(here, monkeypatch):
    use(monkeypatch, [unit("model"), unit("report", ["model"], entry="site", optional_inputs=True)])
    line = "report: runs/tiny/report/index.html, usage: runs/tiny/report/usage.html"
    assert line in mechstudy("run", "study.yaml").stdout.splitlines()
    assert line in mechstudy("status", "study.yaml").stdout.splitlines()
    shutil.rmtree((here / "runs" / "tiny" / "report").resolve())
    assert "report: " not in mechstudy("status", "study.yaml").stdout


def test_the_report_alone_is_made_again_and_its_path_printed(here, monkeypatch):
    use(monkeypatch, chain())
    assert "nothing of this study has run yet" in mechstudy("report", "study.yaml", code=2).stderr
    mechstudy("run", "study.yaml")
    assert mechstudy("report", "study.yaml").stdout.strip() == "runs/tiny/report/index.html"
    assert calls(here / "runs" / "tiny")[5:] == ["report"]


def test_verify_names_the_file_and_the_next_run_rebuilds_it(here, monkeypatch):
    use(monkeypatch, chain())
    mechstudy("run", "study.yaml")
    assert "5 artifacts, every checksum is right" in mechstudy("verify", "study.yaml").stdout
    [file] = (here / "runs" / "tiny" / "artifacts" / "left").glob("*/digest")
    file.write_text(file.read_text().replace(file.read_text()[0], "#"))
    output = mechstudy("verify", "runs/tiny", code=2).stdout
    assert re.search(r"left/left-\w+/digest: the file's bytes have changed", output)
    mechstudy("run", "study.yaml")
    assert calls(here / "runs" / "tiny")[5:] == ["left"]


def test_ctrl_c_exits_with_130_and_says_how_to_resume(here, monkeypatch):
    use(monkeypatch, [unit("left", entry="interrupted")])
    monkeypatch.setattr(sys, "argv", ["mechstudy", "run", "study.yaml"])
    assert "mechstudy run study.yaml" in mechstudy("run", "study.yaml", code=130).stderr


@pytest.mark.process
def test_sigterm_stops_as_cleanly_with_143(here):
    code = (
        "import sys; from mechstudy.planning import opened_study; from mechstudy.cli import main\n"
        "from tests.support.toy_units import unit\n"
        "opened_study.build_units = lambda *_: [unit('train[0]', entry='counting', to=600, pause=0.05)]\n"
        "sys.argv = ['mechstudy', 'run', 'study.yaml']; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not list(here.glob("runs/tiny/artifacts/train/*/.scratch/state")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "the same command resumes" in error and "Traceback" not in error


def test_a_stopped_command_without_units_says_nothing_of_resuming(capsys):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        options.guarded(stopped)()
    assert capsys.readouterr().err.strip() == "stopped"
