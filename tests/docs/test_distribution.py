"""The wheel and the sdist hold what they should, and the wheel works outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from mechstudy._version import __version__
from tests.support.source import PACKAGE, SRC

pytest.importorskip("build", reason="distributions are built with build and hatchling, of the extra `dev`")
pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the sdist, and the wheel that is built from it, as `python -m build` does; nothing is fetched."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)], check=True)
    return out


@pytest.fixture(scope="module")
def wheel(built):
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of a venv with nothing but the wheel in it. Its dependencies are those of this environment, which a
    .pth file lends it: installing torch again would take minutes and a network."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    lent = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "zz_lent.pth").write_text("\n".join(lent))
    (folder / "bin" / "mechstudy").write_text(f"#!{python}\nfrom mechstudy.cli import main\nmain()\n")
    (folder / "bin" / "mechstudy").chmod(0o755)
    return folder


def run(installed, cwd, *words):
    """The output of the installed command, outside the checkout and without its paths."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(installed / "bin" / "mechstudy"), *words], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_has_every_file_of_the_package_and_the_demo(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        demo = archive.read("mechstudy/cli/demo.yaml")
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    sources = tracked or [
        str(file.relative_to(ROOT)) for file in PACKAGE.rglob("*.*") if "__pycache__" not in file.parts
    ]
    assert not {str(Path(file).relative_to(SRC.name)) for file in sources if (ROOT / file).exists()} - names
    assert demo == (ROOT / "examples" / "demo.yaml").read_bytes()
    for name in ("report/templates/base.html.j2", "report/fonts/OFL.txt", "runner/slurm/batch.sh.j2", "py.typed",
                 "corpus/bundled/samples.jsonl.xz", "planning/profiles/h100.yaml"):  # fmt: skip
        assert f"mechstudy/{name}" in names


def test_the_wheel_has_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = f"mechstudy-{__version__}.dist-info/"
    assert not [name for name in names if not name.startswith(("mechstudy/", info))]
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".ipynb"))]
    assert {f"{info}licenses/LICENSE", f"{info}licenses/src/mechstudy/report/fonts/OFL.txt"} <= set(names)


def test_the_sdist_has_sources_tests_and_docs_and_no_junk(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "mkdocs.yml", "constraints.txt", "examples/demo.yaml",
            "docs/index.md", "tests/conftest.py", "tools/site/hooks.py"} <= names  # fmt: skip
    top = {name.partition("/")[0] for name in names}
    assert not top & {".venv", "runs", "build", "dist", "dev", ".git", ".github", ".cache"}, top
    assert not [n for n in names if n.endswith((".pyc", ".safetensors", ".gguf")) or "__pycache__" in n]
    assert sdist.stat().st_size < 12e6


def test_the_installed_command_is_the_wheels(installed, tmp_path):
    assert run(installed, tmp_path, "--version").strip() == f"mechstudy {__version__}"
    where = subprocess.run(
        [str(installed / "bin" / "python"), "-c", "import mechstudy; print(mechstudy.__file__)"],
        cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert Path(where.strip()).is_relative_to(installed)


def test_the_installed_demo_can_be_planned(installed, tmp_path):
    assert "--out" in run(installed, tmp_path, "demo", "--help")
    study = run(installed, tmp_path, "demo", "--study")
    assert study == (ROOT / "examples" / "demo.yaml").read_text()
    (tmp_path / "demo.yaml").write_text(study)
    plan = run(installed, tmp_path, "plan", "demo.yaml", "--hardware", "a100-80gb")
    assert "attribute" in plan and "verdict" in plan


def test_the_installed_init_writes_a_study(installed, tmp_path):
    run(installed, tmp_path, "init", "mine")
    assert (tmp_path / "mine" / "study.yaml").read_text().startswith("# A study")
    run(installed, tmp_path, "plan", "mine/study.yaml", "--hardware", "h100")
