"""JSON: the same text for equal values, atomic files, no NaN."""

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pytest

from mechstudy.core.config import Config
from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import canonical_json, read_json, write_json_atomic


def test_keys_are_sorted_and_nan_and_infinities_are_null():
    assert canonical_json({"b": math.nan, "a": [math.inf, -math.inf, 1.0]}) == '{"a":[null,null,1.0],"b":null}'


def test_whatever_a_phase_hands_over_has_a_json_form():
    @dataclass
    class Point:
        x: int

    class Colour(Enum):
        RED = "red"

    class Small(Config):
        n: tuple[int, ...] = (1,)

    values = [Point(1), Colour.RED, Small(), Path("a/b"), {"z", "y"}, np.float32(0.5), np.arange(2), {3: 4}]
    assert canonical_json(values) == '[{"x":1},"red",{"n":[1]},"a/b",["y","z"],0.5,[0,1],{"3":4}]'


@pytest.mark.parametrize("value", [object(), {1: "a", "1": "b"}, {(1, 2): 3}, {True: 1}, b"x"])
def test_what_has_no_json_form_is_refused(value):
    with pytest.raises(TypeError):
        canonical_json(value)


def test_a_written_file_reads_back_in_its_order_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json_atomic(path, {"b": 1, "a": "\ud83d"})  # a lone surrogate: half a token's character
    assert list(read_json(path).items()) == [("b", 1), ("a", "\ud83d")]
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json_atomic(path, 1)
    monkeypatch.setattr("mechstudy.core.files.fsync_file", lambda _: (_ for _ in ()).throw(OSError(5, "I/O")))
    with pytest.raises(OSError):
        write_json_atomic(path, 2)
    assert read_json(path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_temporary_left_by_a_killed_process_goes_with_the_next_write(tmp_path):
    (tmp_path / ".a.json.tmp-4194305").write_text("half")
    write_json_atomic(tmp_path / "a.json", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_missing_or_cut_file_names_itself(tmp_path):
    with pytest.raises(MechstudyError, match=r"a\.json: no such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{\n"a": ')
    with pytest.raises(MechstudyError, match=r"a\.json:2: not valid JSON: Expecting value"):
        read_json(tmp_path / "a.json")


def test_a_folder_without_write_permission_is_a_plain_error(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path / "x"))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(MechstudyError, match="x: cannot be written: Permission denied"):
        write_json_atomic(tmp_path / "x", 1)
