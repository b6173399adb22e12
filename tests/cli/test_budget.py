"""`mechstudy plan` and `cost` from the command line: what they print, what they refuse, in 100 columns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mechstudy.machine.cache import machine_id
from mechstudy.planning import disk

ROOT = Path(__file__).parents[2]
STUDY = str(ROOT / "examples" / "specification.yaml")


def mechstudy(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mechstudy", *words], capture_output=True, text=True, check=False)


@pytest.fixture
def in_process(monkeypatch, capsys):
    """The app in this process, with a disk as large as it takes."""
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 10**15)

    def run(*words: str) -> tuple[int, str, str]:
        from mechstudy.cli.app import app

        with pytest.raises(SystemExit) as ended:
            app(list(words))
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return run


def test_plan_for_a_gpu_fits_100_columns(tmp_path, in_process):
    code, out, err = in_process("plan", STUDY, "--hardware", "a100-40gb", "--out", str(tmp_path))
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    for text in ("GPU-hours", "service units", "memory in fp32", "with discard", "parameters 3,085,938,688", "…"):
        assert (text in out.replace("\n", "")) == (text != "…"), text


@pytest.mark.parametrize("hardware", ["h100", "this machine"])
def test_in_80_columns_no_table_of_a_plan_is_cut(tmp_path, in_process, monkeypatch, hardware):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = in_process("plan", STUDY, "--hardware", hardware, "--out", str(tmp_path))
    assert "…" not in out and max(map(len, out.partition("folder:")[0].splitlines())) <= 80
    assert out.count("intervene  ") == out.count("phase  ") == (3 if hardware == "h100" else 2)


def test_the_models_that_can_be_planned_unseen_are_listed(in_process):
    code, out, _ = in_process("plan", "--models")
    assert code == 0 and "hf:meta-llama/Meta-Llama-3-8B\n" in out and len(out.splitlines()) > 60


def test_a_cost_of_nothing_says_so(tmp_path, in_process):
    code, out, err = in_process("cost", STUDY, "--hardware", "h100", "--out", str(tmp_path))
    assert code == 2 and out == "" and "nothing of this study has run yet" in err


def test_a_price_without_a_currency_says_whose_it_is(tmp_path, in_process):
    sets = ["--set", "compute.price_per_su=0.5", "--hardware", "h100", "--out", str(tmp_path)]
    assert "0.33 in the money of price_per_su" in in_process("plan", STUDY, *sets)[1]


def test_a_plan_for_other_threads_than_the_pilots_says_so(tmp_path, in_process):
    pilots = {"machine": machine_id(), "threads": 1, "finished": "2030", "auto": None, "fits": {}, "pilots": []}
    (tmp_path / "validate.json").write_text(json.dumps({"calibration": pilots}))
    words = ("plan", STUDY, "--hardware", "this machine", "--device", "cpu", "--out", str(tmp_path))
    assert "pilots of 2030 were for 1 thread, this plan is for 2" in in_process(*words, "--threads", "2")[1]
    assert "calibrated by pilots of 2030" in in_process(*words, "--threads", "1")[1]


def test_a_study_names_its_hardware_and_its_site_s_prices(tmp_path, in_process):
    sets = ["compute.hardware=h100", "compute.su_per_gpu_hour=3", "compute.price_per_su=0.5"]
    words = [word for each in sets for word in ("--set", each)]
    code, out, _ = in_process("plan", STUDY, *words, "--out", str(tmp_path), "--json")
    made = json.loads(out)
    assert code == 0 and made["hardware"]["name"] == "H100"
    total = made["total"]
    assert total["service_units"] == pytest.approx(3 * total["gpu_hours"])
    assert total["price"] == pytest.approx(1.5 * total["gpu_hours"])


def test_a_model_too_large_for_the_gpu_is_refused_with_one_that_holds_it(tmp_path, in_process):
    big = ["--set", "model.source=hf:Qwen/Qwen2.5-14B", "--hardware", "a100-40gb", "--out", str(tmp_path)]
    code, out, err = in_process("plan", STUDY, *big, "--set", "storage.quota=1GB")
    assert code == 2 and "the memory of A100-40GB is too small for this study by" in err
    assert err.index("the memory of") < err.index("storage.quota is too small"), "all of it, the worst first"
    assert "the disk there is not checked here" in " ".join(out.split())
    assert "--hardware a100-80gb" in err


def test_a_batch_too_large_for_the_gpu_is_refused_with_the_batch_that_fits(tmp_path, in_process):
    wide = ["--set", "compute.batch_tokens=262144", "--hardware", "a100-40gb", "--out", str(tmp_path)]
    code, _, err = in_process("plan", STUDY, *wide)
    assert code == 2 and "fix:" in err
    tokens = int(err.split("compute.batch_tokens: ")[1].split(",")[0])
    fits = ["--set", f"compute.batch_tokens={tokens}", "--hardware", "a100-40gb", "--out", str(tmp_path)]
    assert in_process("plan", STUDY, *fits)[0] == 0
    more = ["--set", f"compute.batch_tokens={2 * tokens}", "--hardware", "a100-40gb", "--out", str(tmp_path)]
    assert in_process("plan", STUDY, *more)[0] == 2, "it is the first that fits"


def test_a_slurm_limit_too_short_is_refused_at_its_field(tmp_path, in_process):
    slurm = "compute.slurm={time: '00:06:00', max_restarts: 0}"
    code, _, err = in_process("plan", STUDY, "--set", slurm, "--hardware", "a100-40gb", "--out", str(tmp_path))
    assert code == 2 and err.startswith("error: compute.slurm.time")


@pytest.mark.process
def test_unknown_hardware_is_a_mistake_with_the_nearest_name():
    done = mechstudy("plan", STUDY, "--hardware", "a100-80")
    assert done.returncode == 2 and "did you mean 'a100-80gb'?" in done.stderr


@pytest.mark.process
def test_cost_of_what_has_not_run_is_nothing_and_imports_no_torch(tmp_path):
    code = (
        "import sys\nfrom mechstudy.cli import main\n"
        "try: main()\nexcept SystemExit as exit: assert not exit.code, exit.code\nsys.exit('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, "cost", STUDY, "--hardware", "h100", "--out", str(tmp_path), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["total"]["done"], found["total"]["seconds"]) == (0, 0.0)
