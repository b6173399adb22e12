"""Configs from YAML: what is read, and every invalid file, reported at its file and line."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError, field_validator, model_validator

from mechstudy.core.config import Config, load_config, load_config_with_lines
from mechstudy.core.errors import MechstudyError


class Text(Config):
    kind: Literal["text"] = "text"
    path: str
    text: str = ""


class Capture(Config):
    layers: tuple[int, ...]
    sites: tuple[Literal["resid_pre", "mlp_out"], ...] = ("mlp_out",)

    @field_validator("layers")
    @classmethod
    def _exist(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if max(layers, default=0) > 29:
            raise MechstudyError(
                f"layer {max(layers)} does not exist",
                facts={"model": "SmolLM2-135M-Instruct has layers 0-29"},
                fix="layers: 10-29",
            )
        return layers


class Study(Config):
    name: str
    corpus: Text
    more: tuple[Text, ...] = ()
    capture: Capture
    by_layer: dict[int, Capture] = Field(default_factory=dict)
    either: Capture | None = None
    other: Text | None = None
    lr: float | Literal["auto"] = "auto"
    steps: int = Field(3, gt=0)
    resume: bool = True

    @model_validator(mode="after")
    def _lucky(self) -> "Study":
        if self.steps == 13:
            raise MechstudyError("13 is unlucky", where="steps")
        if self.steps == 14:
            raise ValueError("14 is unlucky too")
        return self


BASE = """\
name: first
corpus:
  kind: text
  path: corpus.txt
capture:
  layers: [1, 2]
"""


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load(in_folder: Path):
    def load(text: str, *overrides: str) -> Study:
        Path("study.yaml").write_text(text)
        return load_config(Path("study.yaml"), Study, overrides)

    return load


@pytest.fixture
def refusal(load):
    """The text of the error a file is refused with."""

    def refusal(text: str, *overrides: str) -> str:
        with pytest.raises(MechstudyError) as caught:
            load(text, *overrides)
        return str(caught.value)

    return refusal


def test_a_right_file_gives_the_config_with_its_defaults(load):
    study = load(BASE)
    assert study.corpus == Text(path="corpus.txt")
    assert study.capture.layers == (1, 2)
    assert study.steps == 3


def test_yaml_is_1_2_so_on_and_yes_stay_text_and_exponents_are_numbers(load):
    assert load(BASE.replace("first", "on")).name == "on"
    assert load(BASE + "lr: 1e-3\n").lr == 0.001


def test_a_date_stays_text(load):
    assert load(BASE.replace("first", "2024-01-01")).name == "2024-01-01"


def test_configs_are_frozen_and_refuse_unknown_keys_and_check_defaults():
    with pytest.raises(ValidationError):
        Text(path="a").path = "b"
    with pytest.raises(MechstudyError, match="Text: pth: unknown key"):
        Text(path="a", pth="b")

    class Wrong(Config):
        n: int = "three"  # type: ignore[assignment]  # the point of the test

    with pytest.raises(MechstudyError, match="Wrong: must be an integer, not 'three'"):
        Wrong()


class Size(Config):
    unit: Literal["metre", "mile"] = "metre"
    n: int = 1


class Journey(Config):
    size: Size = Size()
    stops: tuple[int, ...] = ()


def test_invalid_values_raise_the_same_error_in_python_and_in_yaml():
    with pytest.raises(MechstudyError) as error:
        Size(unit="metr")
    assert str(error.value) == "Size: unit: 'metr' is not one of metre, mile\n  fix:   unit: metre"
    with pytest.raises(MechstudyError, match="Size: units: unknown key") as error:
        Size(units="metre")
    assert error.value.fix == "unit"
    with pytest.raises(MechstudyError, match="Journey: zzz: unknown key") as error:
        Journey(zzz=1)
    assert error.value.facts == {"valid": "size, stops"}
    with pytest.raises(MechstudyError, match=r"Journey: stops\.1: must be an integer, not 'x'"):
        Journey(stops=(1, "x"))


def test_an_error_in_a_nested_config_names_its_own_place(load):
    with pytest.raises(MechstudyError, match=r"Journey: size\.unit: 'metr' is not one of"):
        Journey(size={"unit": "metr"})
    with pytest.raises(ValidationError) as error:
        Journey.model_validate({"size": {"unit": "metr"}})
    assert error.value.errors()[0]["loc"] == ("size", "unit")


def test_a_set_in_a_config_is_refused_when_the_class_is_made():
    with pytest.raises(TypeError, match=r"Bad\.names is a set"):

        class Bad(Config):
            names: frozenset[str] | None = None


def test_canonical_keeps_defaults_and_makes_tuples_lists():
    assert Capture(layers=(1,)).canonical() == {"layers": [1], "sites": ["mlp_out"]}


# Mistakes, each with its whole text.

REFUSALS = {
    "unknown key": (
        BASE.replace("layers", "layrs"),
        "study.yaml:6: capture.layrs: unknown key\n  fix:   layers",
    ),
    "unknown key, nothing near": (
        BASE + "zzz: 1\n",
        "study.yaml:7: zzz: unknown key\n"
        "  valid: name, corpus, more, capture, by_layer, either, other, lr, steps, resume\n"
        "  fix:   remove zzz",
    ),
    "missing field": (
        BASE.replace("  path: corpus.txt\n", ""),
        "study.yaml:2: corpus.path: is required and not given\n  fix:   add path: ...",
    ),
    "wrong type": (BASE + "steps: many\n", "study.yaml:7: steps: must be an integer, not 'many'"),
    "a fraction for a count": (BASE + "steps: 1.5\n", "study.yaml:7: steps: must be an integer, not 1.5"),
    "nothing after the colon": (BASE + "steps:\n", "study.yaml:7: steps: must be an integer, not empty"),
    "out of range": (BASE + "steps: -3\n", "study.yaml:7: steps: must be greater than 0, not -3"),
    "no boolean": (BASE + "resume: maybe\n", "study.yaml:7: resume: must be true or false, not 'maybe'"),
    "number for text": (
        BASE.replace("first", "12"),
        'study.yaml:1: name: must be text, not 12\n  fix:   in quotes: "12"',
    ),
    "number for a list": (
        BASE.replace("[1, 2]", "7"),
        "study.yaml:6: capture.layers: must be a list, not 7",
    ),
    "text for a section": (
        BASE.replace("\n  layers: [1, 2]", " all"),
        "study.yaml:5: capture: must be a mapping of keys to values, not 'all'",
    ),
    "a validator's error": (
        BASE.replace("[1, 2]", "[1, 31]"),
        "study.yaml:6: capture.layers: layer 31 does not exist\n"
        "  model: SmolLM2-135M-Instruct has layers 0-29\n"
        "  fix:   layers: 10-29",
    ),
    "a model validator's error at the field it names": (
        BASE + "steps: 13\n",
        "study.yaml:7: steps: 13 is unlucky",
    ),
    "a model validator's ValueError": (BASE + "steps: 14\n", "study.yaml:1: 14 is unlucky too"),
    "not one of the literals": (
        BASE + "either:\n  layers: [1]\n  sites:\n    - resid_pre\n    - mlp_uot\n",
        "study.yaml:11: either.sites.1: 'mlp_uot' is not one of resid_pre, mlp_out\n  fix:   mlp_out",
    ),
    "number or word": (
        BASE + "lr: aut\n",
        "study.yaml:7: lr: must be a number or auto, not 'aut'\n  fix:   lr: auto",
    ),
    "not the only literal": (
        BASE.replace("kind: text", "kind: texxt"),
        "study.yaml:3: corpus.kind: 'texxt' is not one of text\n  fix:   kind: text",
    ),
    "unknown key, deeper": (
        BASE.replace("  path:", "  pth:"),
        "study.yaml:4: corpus.pth: unknown key\n  fix:   path",
    ),
    "two mistakes in a section": (
        BASE.replace("path: corpus.txt", "text: 3\n  path: 3"),
        "study.yaml:4: corpus.text: must be text, not 3\n"
        "  also:  study.yaml:5: corpus.path: must be text, not 3\n"
        '  fix:   in quotes: "3"',
    ),
    "in a list of sections": (
        BASE + "more:\n  - path: x\n  - path: x\n    txt: y\n",
        "study.yaml:10: more.1.txt: unknown key\n  fix:   text",
    ),
    "in a mapping by number": (
        BASE + "by_layer:\n  3:\n    layers: [1]\n  4:\n    layers: [1, x]\n",
        "study.yaml:11: by_layer.4.layers.1: must be an integer, not 'x'",
    ),
    "unknown key in a mapping of sections": (
        BASE + "by_layer:\n  3:\n    layrs: [1]\n",
        "study.yaml:9: by_layer.3.layrs: unknown key\n  fix:   layers",
    ),
    "in an optional section": (
        BASE + "either:\n  layers: [1, x]\n",
        "study.yaml:8: either.layers.1: must be an integer, not 'x'",
    ),
    "given twice": (
        BASE + "name: second\n",
        "study.yaml:7: name: given twice\n  first: line 1\n  fix:   keep one of them",
    ),
    "given twice, deeper": (
        BASE + "  layers: [3]\n",
        "study.yaml:7: capture.layers: given twice\n  first: line 6\n  fix:   keep one of them",
    ),
    "an alias of itself": (
        BASE + "either: &a\n  layers: [*a]\n",
        "study.yaml:7: either.layers.0: refers to itself",
    ),
    "through a merge key": (
        BASE.replace("corpus:", "corpus: &c") + "other:\n  <<: *c\n  pathh: y\n",
        "study.yaml:9: other.pathh: unknown key\n  fix:   path",
    ),
    "a key that goes before a merged one": (
        BASE.replace("corpus:", "corpus: &c") + "other:\n  path: 4\n  <<: *c\n",
        'study.yaml:8: other.path: must be text, not 4\n  fix:   in quotes: "4"',
    ),
    "a list never closed": (
        BASE + "steps: [1\n",
        "study.yaml:7: not valid YAML: while parsing a flow sequence expected ',' or ']', "
        "but got '<stream end>'\n  text:  steps: [1",
    ),
    "a tab": (
        BASE + "\tsteps: 1\n",
        "study.yaml:7: not valid YAML: while scanning for the next token found character '\\t' "
        "that cannot start any token\n  text:  steps: 1",
    ),
    "two documents": (
        BASE + "---\nname: b\n",
        "study.yaml:7: not valid YAML: expected a single document in the stream "
        "but found another document\n  text:  ---",
    ),
    "a python tag": (
        BASE + "steps: !!python/object:os.system x\n",
        "study.yaml:7: not valid YAML: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object:os.system'\n  text:  steps: !!python/object:os.system x",
    ),
    "an unknown alias": (
        BASE + "steps: *n\n",
        "study.yaml:7: not valid YAML: found undefined alias 'n'\n  text:  steps: *n",
    ),
    "a number as a key": (BASE + "1: 3\n", "study.yaml:7: 1: keys should be strings"),
    "a list as a key": (
        BASE + "? [1, 2]\n: 3\n",
        "study.yaml:7: key: must be text, not a list or mapping",
    ),
    "empty": ("", "study.yaml: the file is empty\n  fix:   write a study into it"),
    "comments only": ("# later\n", "study.yaml: the file is empty\n  fix:   write a study into it"),
    "a list at the root": ("- a\n", "study.yaml:1: must be a mapping of keys to values, not a list"),
    "text at the root": ("\nhello\n", "study.yaml:2: must be a mapping of keys to values, not text"),
    "several mistakes": (
        BASE.replace("corpus.txt", "3").replace("[1, 2]", "[1, x]"),
        "study.yaml:4: corpus.path: must be text, not 3\n"
        "  also:  study.yaml:6: capture.layers.1: must be an integer, not 'x'\n"
        '  fix:   in quotes: "3"',
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_wrong_file_is_refused_with_exactly(case, refusal):
    text, expected = REFUSALS[case]
    assert refusal(text) == expected


def test_a_missing_file_names_the_nearest(in_folder):
    Path("study.yaml").write_text(BASE)
    with pytest.raises(MechstudyError) as caught:
        load_config(Path("studdy.yaml"), Study)
    assert str(caught.value) == "studdy.yaml: no such file\n  there: study.yaml\n  fix:   study.yaml"


def test_a_folder_and_bytes_that_are_no_text_are_refused(in_folder):
    Path("latin.yaml").write_bytes("name: caf\xe9\n".encode("latin-1"))
    Path("bell.yaml").write_bytes(b"name: \x07\n")
    for name, expected in {
        ".": ".: is a folder, not a study file\n  fix:   bell.yaml",
        "latin.yaml": "latin.yaml: not UTF-8 text (byte 9)\n  fix:   save it as UTF-8",
        "bell.yaml": "bell.yaml: not valid YAML: special characters are not allowed",
    }.items():
        with pytest.raises(MechstudyError) as caught:
            load_config(Path(name), Study)
        assert str(caught.value) == expected


# Overrides


def test_overrides_reach_into_sections_lists_and_number_keys(load):
    study = load(
        BASE + "by_layer:\n  12: {layers: [3]}\n",
        "capture.layers.0=7",
        "capture.layers.2=9",
        "by_layer.12.layers=[4]",
        "corpus.path=a=b",
        "more.0={path: d}",
        "steps=5",
    )
    assert study.capture.layers == (7, 2, 9)
    assert study.by_layer[12].layers == (4,)
    assert study.corpus == Text(path="a=b")
    assert study.more == (Text(path="d"),)
    assert study.steps == 5


def test_an_override_of_an_anchored_section_leaves_its_aliases_alone(load):
    text = BASE.replace("capture:", "capture: &c") + "either: *c\n"
    study = load(text, "capture.layers=[5]")
    assert (study.capture.layers, study.either.layers) == ((5,), (1, 2))


OVERRIDE_REFUSALS = {
    "capture.layers=[31]": "--set capture.layers: layer 31 does not exist\n"
    "  model: SmolLM2-135M-Instruct has layers 0-29\n  fix:   layers: 10-29",
    "capture.layers.0=31": "study.yaml:6: capture.layers: layer 31 does not exist\n"
    "  model: SmolLM2-135M-Instruct has layers 0-29\n"
    "  with:  --set capture.layers.0\n  fix:   layers: 10-29",
    "capture={layers: [x]}": "--set capture: layers.0: must be an integer, not 'x'",
    "capture.layrs=[1]": "--set capture.layrs: unknown key\n  fix:   --set 'capture.layers=[1]'",
    "captur.layers=1": "--set captur.layers: unknown key\n  fix:   --set capture.layers=1",
    "capture={layrs: [1]}": "--set capture: layrs: unknown key\n  fix:   layers",
    "either.sites=[mlp_out]": "study.yaml:1: either.layers: is required and not given\n"
    "  with:  --set either.sites\n  fix:   add layers: ...",
    "steps=": "--set steps: must be an integer, not empty",
    "steps=[1": "--set steps: not valid YAML: while parsing a flow sequence expected ',' or ']', "
    "but got '<stream end>'",
    "capture.layers.5=1": "--set capture.layers.5: capture.layers is a list of 2, and 5 is no position in it\n"
    "  fix:   use 0 to 2 (2 appends)",
    "name.first=1": "--set name.first: name is 'first', which has nothing named first",
    "steps": "--set steps: is not of the form key=value\n  fix:   for example --set seed=1",
    "a..b=1": "--set a..b=1: is not of the form key=value\n  fix:   for example --set seed=1",
    "steps=14": "study.yaml:1: 14 is unlucky too\n  with:  --set steps",
}


@pytest.mark.parametrize("override", OVERRIDE_REFUSALS)
def test_a_wrong_override_is_refused_with_exactly(override, refusal):
    assert refusal(BASE, override) == OVERRIDE_REFUSALS[override]


def test_lines_place_a_mistake_that_only_a_later_step_sees(in_folder):
    Path("study.yaml").write_text(BASE)
    _, lines = load_config_with_lines(Path("study.yaml"), Study, ["steps=9"])
    late = lines.error("capture.layers", "layer 2 does not exist", fix="layers: 0-1")
    assert str(late) == "study.yaml:6: capture.layers: layer 2 does not exist\n  fix:   layers: 0-1"
    assert str(lines.error("steps", "too many")) == "--set steps: too many"
    assert lines.where("capture.sites") == "study.yaml:5"  # a default: the section's line


@pytest.mark.process
def test_core_imports_no_heavy_library():
    code = (
        "from mechstudy.core import config, progress, seeds, jsonio; from mechstudy.machine import runtime;"
        "from mechstudy.store import artifacts, checkpoint, lock; import sys;"
        "print([m for m in ('torch', 'numpy', 'rich', 'safetensors', 'psutil') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
