"""A small run of the real model, made once."""

import pytest

import mechstudy as ms
from tests.support.api_world import write_small_demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """``runs/demo`` below a folder with ``study.yaml``: the demo in small, on the real model, without its report."""
    folder = tmp_path_factory.mktemp("demo")
    write_small_demo(folder / "study.yaml")
    study = ms.Study.load(folder / "study.yaml", out=folder / "runs" / "demo", say=lambda _: None)
    return study.run(["baseline[subject_verb_agreement]", "intervene[subject_verb_agreement]", "features"]).path
