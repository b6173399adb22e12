"""`import mechstudy as ms`: quick, complete, documented."""

import inspect
import os
import subprocess
import sys
from importlib.resources import files

import pytest

import mechstudy as ms
from mechstudy import api


def test_every_public_name_is_there_and_documented():
    for name in ms.__all__:
        value = getattr(ms, name)
        assert inspect.getdoc(value), name


def test_the_package_offers_all_that_its_interface_does():
    assert set(api.__all__) <= set(ms.__all__)
    assert set(ms.__all__) <= set(dir(ms))


def test_functions_show_an_example():
    for name in ("ablate", "attribute", "capture", "components", "generate", "keep_only", "load_dictionaries",
                 "load_model", "load_prompts", "open_run", "train"):  # fmt: skip
        assert f"ms.{name}(" in (getattr(ms, name).__doc__ or ""), name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError):
        ms.no_such_name  # noqa: B018


def test_the_package_is_typed():
    assert files("mechstudy").joinpath("py.typed").is_file()


@pytest.mark.process
def test_importing_loads_no_torch_and_takes_no_time():
    code = (
        "import time; t = time.perf_counter(); import mechstudy as ms; s = time.perf_counter() - t\n"
        "import sys; dir(ms); heavy = {'torch', 'transformers', 'polars', 'numpy'} & set(sys.modules)\n"
        "print(s < .15, sorted(heavy))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "True []"


@pytest.mark.process
def test_opening_a_run_loads_no_torch(tmp_path):
    (tmp_path / "artifacts").mkdir()
    code = f"import mechstudy as ms, sys; ms.open_run({str(tmp_path)!r}).effects; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"


@pytest.mark.process
@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")],
)
def test_waiting_threads_leave_the_cores_to_others_unless_another_way_is_asked_for(given, expected):
    unset = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import os, mechstudy; print(os.environ.get('GOMP_SPINCOUNT'))"
    shown = subprocess.run([sys.executable, "-c", code], env=unset | given, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == expected
