"""Dictionaries on the Hugging Face hub: one folder of a repository each, in SAELens' format, with a model card.

What is fetched is named file by file: configs, safetensors and NumPy arrays. Pickles (``ae.pt``) and code stay there.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary

PREFIX = "hf:"
CARD = "README.md"
_FOLDER_FILES = (
    "cfg.json", "sae_weights.safetensors", "sae.safetensors", "params.npz", "params.safetensors",
    "activation_scaler.json", "activation_whitening.safetensors",
)  # fmt: skip
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
        """Take ``hf:owner/name[/sub/folder][@revision]`` apart.

        Raises:
            MechstudyError: it is none, or has parts that are no plain names, such as ``..``.
        """
        place, at, revision = text.removeprefix(PREFIX).partition("@")
        parts = place.split("/")
        if len(parts) < 2 or not all(map(_PART.fullmatch, parts)) or any(".." in part for part in parts):
            raise MechstudyError(f"{text!r} names no repository of the hub", facts={"form": _FORM}, fix="owner/name")
        if at and (not _REVISION.fullmatch(revision) or ".." in revision):
            raise MechstudyError(f"{revision!r} is no revision", facts={"form": _FORM}, fix="a branch, tag or commit")
        return cls("/".join(parts[:2]), "/".join(parts[2:]), revision or None)

    def __str__(self) -> str:
        inside = f"/{self.inside}" if self.inside else ""
        return f"{PREFIX}{self.repo}{inside}" + (f"@{self.revision}" if self.revision else "")


def is_hub(text: str) -> bool:
    """Whether a path says where on the hub."""
    return text.startswith(PREFIX)


def pull(place: str, *, token: str | None = None) -> Path:
    """Fetch one dictionary into the hub's cache; its local folder, or file.

    Args:
        place: see `HubPath.parse`; the last part may be a file of a set, such as ``layer_3.safetensors``.
        token: None takes the one of ``hf auth login`` or HF_TOKEN.

    Raises:
        MechstudyError: the repository, revision or files do not exist, are not yours to read, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    path = HubPath.parse(place)
    if path.inside.endswith((".safetensors", ".npz")):
        folder = path.inside.rpartition("/")[0]
        wanted = [path.inside, f"{folder}/config.yaml".lstrip("/")]
    else:
        wanted = [f"{path.inside}/{name}".lstrip("/") for name in _FOLDER_FILES]
    with _told(str(path)):
        snapshot = Path(snapshot_download(path.repo, revision=path.revision, allow_patterns=wanted, token=token))
    if not any((snapshot / name).exists() for name in wanted):
        raise MechstudyError(
            f"there is no dictionary at {path.inside or 'the top of the repository'}",
            where=str(path),
            facts={"looked for": ", ".join(wanted), "folders with one": _folders(path, token) or "none"},
            fix="hf:owner/name/<folder>; a dictionary in a pickle (ae.pt) is not fetched: download it yourself",
        )
    return snapshot / path.inside


def push(
    dictionary: Dictionary,
    repo: str,
    *,
    path_in_repo: str = "",
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    overwrite_card: bool = False,
) -> str:
    """Put a dictionary and its model card into a repository, made where it does not exist, in one commit.

    Args:
        repo: ``owner/name``.
        path_in_repo: its folder there; SAELens' `from_pretrained` finds only what stands in one.
        private: of a repository that is made now; None is the owner's default.
        revision: a branch, made where it does not exist; None is the main one.
        token: None takes the one of ``hf auth login`` or HF_TOKEN.
        metrics: numbers for the card, such as FVU and L0.
        overwrite_card: also where the folder holds a README.md already; by default that one stays.

    Returns:
        The commit's address.

    Raises:
        MechstudyError: a name is no plain one, the hub refuses, or it cannot be reached.
    """
    from huggingface_hub import HfApi

    from mechstudy.dictionaries.formats.card import model_card

    place = HubPath.parse(f"{PREFIX}{repo}" + (f"/{path_in_repo}" if path_in_repo else "") +
                          (f"@{revision}" if revision else ""))  # fmt: skip
    if place.repo != repo:
        raise MechstudyError(f"{repo!r} names no repository", fix=f"{place.repo!r}, and path_in_repo for the rest")
    with tempfile.TemporaryDirectory(prefix="mechstudy-push-") as scratch, _told(str(place)):
        api = HfApi(token=token)
        api.create_repo(repo, private=private, repo_type="model", exist_ok=True)
        if revision:
            api.create_branch(repo, branch=revision, repo_type="model", exist_ok=True)
        folder = Path(scratch) / place.inside
        dictionary.save(folder)
        card = f"{place.inside}/{CARD}".lstrip("/")
        if overwrite_card or not api.file_exists(repo, card, revision=revision, repo_type="model"):
            (folder / CARD).write_text(model_card(dictionary, repo, place.inside, revision, metrics or {}))
        done = api.upload_folder(
            repo_id=repo,
            repo_type="model",
            folder_path=scratch,
            revision=revision,
            commit_message=f"Dictionary {place.inside or dictionary.cfg.site_out}",
        )
    return str(done.commit_url)


def _folders(path: HubPath, token: str | None) -> str:
    """Where in the repository dictionaries stand, for an error's text; empty where that cannot be asked."""
    from huggingface_hub import HfApi

    try:
        files = HfApi(token=token).list_repo_files(path.repo, revision=path.revision)
    except Exception:  # the error that is being told is another one
        return ""
    found = sorted({name.rpartition("/")[0] or "." for name in files if name.rpartition("/")[2] in _FOLDER_FILES})
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")


@contextmanager
def _told(place: str) -> Iterator[None]:
    """The hub client's many errors, as what a person can do about each."""
    from huggingface_hub import errors

    try:
        yield
    except MechstudyError:
        raise
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            what, fix = "the repository is gated", "ask for access on its page, then `hf auth login` or HF_TOKEN"
        elif isinstance(error, errors.RepositoryNotFoundError):
            what = "there is no such repository, or it is private"
            fix = "check owner/name; for a private one `hf auth login` or HF_TOKEN"
        elif isinstance(error, errors.RevisionNotFoundError):
            what, fix = "the repository has no such revision", "a branch, tag or commit of it"
        elif isinstance(error, errors.HFValidationError):
            what, fix = "the hub takes no such name", "owner/name of letters, digits, - _ and ."
        elif isinstance(error, errors.LocalTokenNotFoundError) or status in (401, 403):
            what, fix = "the hub refuses this account", "`hf auth login` with a token that may do this, or HF_TOKEN"
        else:
            what = "the hub cannot be reached, or something is wrong there"
            fix = "check the network; offline, copy the folder here and use its path"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise MechstudyError(what, where=place, facts={"reason": reason}, fix=fix) from error
