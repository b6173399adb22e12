import pytest

import mechstudy as ms
from tests.support.api_world import error_of
from tests.support.tiny_study import write_study


def test_a_mistake_in_the_study_is_at_its_line(tmp_path):
    file = write_study(tmp_path)
    file.write_text(file.read_text().replace("attribution:", "atribution:"))
    assert "study.yaml:" in error_of(lambda: ms.Study.load(file))
    assert "attribution" in error_of(lambda: ms.Study.load(file))


def test_a_unit_that_fails_is_an_error_with_its_reason(tmp_path):
    file = write_study(tmp_path)
    (tmp_path / "text.txt").write_text("short")
    study = ms.Study.load(file, out=tmp_path / "run", say=lambda _: None)
    with pytest.raises(ms.MechstudyError, match=r"corpus:"):
        study.run(["corpus"])


def test_overrides_are_those_of_the_command_line(tmp_path):
    study = ms.Study.load(write_study(tmp_path), ["dictionaries.layers=1"], say=lambda _: None)
    assert study.config.dictionaries.layers == 1
    assert study.folder.as_posix() == "runs/tiny"
