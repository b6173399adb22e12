"""Dictionaries on the Hugging Face hub: one folder of a repository each, or a set that circuit-tracer describes.

Ours are pushed in SAELens' format, with a model card. Only named files are downloaded: configs, safetensors and NumPy
arrays. Code is not, and of pickles only a Qwen-Scope file (``layer3.sae.pt``) that is asked for; it is read with
torch's weights-only loader.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats import saelens
from mechstudy.dictionaries.formats.card import model_card
from mechstudy.dictionaries.formats.circuit_tracer import CONFIG, read_config
from mechstudy.dictionaries.stored import DictionaryLike
from mechstudy.models import hub

PREFIX = "hf:"
CARD = "README.md"
_FOLDER_FILES = (
    "cfg.json", "sae_weights.safetensors", "sae.safetensors", "params.npz", "params.safetensors",
    "activation_scaler.json", "activation_whitening.safetensors", "hyperparams.json", "checkpoints/final.safetensors",
)  # fmt: skip
_SET_FILES = ("layer_[0-9]*.safetensors", "W_enc_[0-9]*.safetensors", "W_dec_[0-9]*.safetensors",
              "params_layer_[0-9]*.safetensors", "mechstudy.json")  # fmt: skip
_PART = re.compile(r"[A-Za-z0-9_][\w.=+-]*")
_REVISION = re.compile(r"[A-Za-z0-9_][\w./-]*")
_FORM = "hf:owner/name, hf:owner/name/sub/folder, either with @revision"


@dataclass(frozen=True)
class HubPath:
    """A place in a repository of the hub: ``hf:owner/name/inside@revision``."""

    repo: str
    inside: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubPath:
        """Split ``hf:owner/name[/sub/folder][@revision]``.

        Raises:
            MechstudyError: it has another form, or unsafe parts such as ``..``.
        """
        place, at, revision = text.removeprefix(PREFIX).partition("@")
        parts = place.split("/")
        if len(parts) < 2 or not all(map(_PART.fullmatch, parts)) or any(".." in part for part in parts):
            raise MechstudyError(f"{text!r} names no repository of the hub", facts={"form": _FORM}, fix="owner/name")
        if at and (not _REVISION.fullmatch(revision) or ".." in revision):
            raise MechstudyError(f"{revision!r} is no revision", facts={"form": _FORM}, fix="a branch, tag or commit")
        return cls("/".join(parts[:2]), "/".join(parts[2:]), revision or None)

    def __str__(self) -> str:
        return hub.place_name(self.repo, self.inside, self.revision)


def is_hub(text: str) -> bool:
    """Whether a path names a place on the hub."""
    return text.startswith(PREFIX)


def pull(place: str, *, token: str | None = None) -> Path:
    """Download one dictionary, or a circuit-tracer set, into the hub's cache and return its local folder or file.

    Of a set whose config.yaml lists its files, only config.yaml is downloaded (see `sets.sources`).

    Args:
        place: see `HubPath.parse`; the last part may be a file of a set, such as ``layer_3.safetensors``.
        token: None uses that of ``hf auth login`` or HF_TOKEN.

    Raises:
        MechstudyError: the repository, revision or files do not exist, may not be read, or cannot be reached.
    """
    path = HubPath.parse(place)
    folder, _, name = path.inside.rpartition("/")
    if name.endswith((".safetensors", ".npz", ".sae.pt")):
        looked_for = [name]
        found = _fetch(path, folder, [name, CONFIG, "config.json"], token)
    else:
        folder, looked_for = path.inside, [*_FOLDER_FILES, CONFIG]
        found = _fetch(path, folder, [*_FOLDER_FILES, "config.json", CONFIG], token)
        if (found / CONFIG).exists() and not any((found / name).exists() for name in _FOLDER_FILES):
            if "transcoders" not in read_config(found):
                found = _fetch(path, folder, [CONFIG, *_SET_FILES], token)
            return found
        name = ""
        if not any((found / looked).exists() for looked in looked_for):  # a set without a config.yaml
            found = _fetch(path, folder, _SET_FILES, token)
            if any(found.glob("*_[0-9]*.safetensors")):
                return found
    if not any((found / looked).exists() for looked in looked_for):
        raise MechstudyError(
            f"there is no dictionary at {path.inside or 'the top of the repository'}",
            where=str(path),
            facts={"looked for": ", ".join(looked_for), "folders with one": _folders(path, token) or "none"},
            fix="hf:owner/name/<folder>; a dictionary in a pickle (ae.pt) is not fetched: download it yourself",
        )
    return found / name


def _fetch(path: HubPath, folder: str, names: Sequence[str], token: str | None) -> Path:
    """The local folder, with those of the files that the repository has."""
    patterns = [f"{folder}/{name}".lstrip("/") for name in names]
    with hub.hub_errors(str(path)):
        snapshot = hub.download_folder(path.repo, patterns=patterns, revision=path.revision, token=token)
    return snapshot / folder


def push(
    dictionary: DictionaryLike,
    repo: str,
    *,
    path_in_repo: str = "",
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    overwrite_card: bool = False,
) -> str:
    """Upload a dictionary and its model card in one commit; the repository is created if it does not exist.

    Args:
        dictionary: what to upload.
        repo: ``owner/name``.
        path_in_repo: its folder there; SAELens' `from_pretrained` finds only dictionaries in a folder.
        private: of a repository that is created; None is the owner's default.
        revision: a branch, created if it does not exist; None is the main one.
        token: None uses that of ``hf auth login`` or HF_TOKEN.
        metrics: numbers for the card, such as FVU and L0.
        overwrite_card: replace an existing README.md of the folder; by default it is kept.

    Returns:
        The commit's address.

    Raises:
        MechstudyError: a name is not valid, the hub refuses, or it cannot be reached.
    """
    place = HubPath.parse(hub.place_name(repo, path_in_repo, revision))
    if place.repo != repo:
        raise MechstudyError(f"{repo!r} names no repository", fix=f"{place.repo!r}, and path_in_repo for the rest")
    with tempfile.TemporaryDirectory(prefix="mechstudy-push-") as scratch, hub.hub_errors(str(place)):
        hub.create_repository(repo, private=private, revision=revision, token=token)
        folder = Path(scratch) / place.inside
        saelens.write(dictionary, folder)
        card = f"{place.inside}/{CARD}".lstrip("/")
        if overwrite_card or not hub.file_exists(repo, card, revision=revision, token=token):
            (folder / CARD).write_text(model_card(dictionary, repo, place.inside, revision, metrics or {}))
        message = f"Dictionary {place.inside or dictionary.cfg.site_out}"
        return hub.upload_folder(Path(scratch), repo, message=message, revision=revision, token=token)


def _folders(path: HubPath, token: str | None) -> str:
    """Folders of the repository that hold dictionaries, for an error's text; empty if they cannot be listed."""
    try:
        files = hub.list_files(path.repo, revision=path.revision, token=token)
    except MechstudyError:  # the missing dictionary is the error to report
        return ""
    folders = sorted({name.rpartition("/")[0] or "." for name in files if name.rpartition("/")[2] in _FOLDER_FILES})
    return ", ".join(folders[:8]) + (f" and {len(folders) - 8} more" if len(folders) > 8 else "")
