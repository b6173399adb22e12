"""The Hugging Face hub: downloads, listings and uploads, without its client's log lines, with errors that name a fix.

Every call to `huggingface_hub` in mechstudy is made here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import huggingface_hub  # imports its client at the first call
from huggingface_hub import constants

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json

OFFLINE_FIX = "fetch it where there is a network, into that cache (HF_HOME), or copy the folder here and use its path"


def download_folder(
    repo: str, *, patterns: Sequence[str], revision: str | None = None, token: str | None = None
) -> Path:
    """Downloads the files of a repository that match ``patterns`` and returns the folder they are in.

    Files that the hub's cache already holds are not downloaded again.

    Args:
        repo: ``owner/name``.
        patterns: file names or glob patterns, as `huggingface_hub.snapshot_download` takes them.
        revision: a branch, tag or commit; None is the main branch.
        token: None uses the one of ``hf auth login`` or HF_TOKEN.

    Raises:
        MechstudyError: the repository or revision does not exist, is not readable, or cannot be reached.
    """
    with hub_errors(place_name(repo, revision=revision)):
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=_whole_commit(repo, revision), allow_patterns=list(patterns), token=token
            )
        )


def download_file(repo: str, name: str, *, revision: str | None = None) -> Path:
    """Downloads one file of a repository, unless it is in the hub's cache, and returns its path.

    Raises:
        MechstudyError: as `download_folder`.
    """
    with hub_errors(place_name(repo, name, revision)):
        return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision))


def cached_folder(repo: str, *, patterns: Sequence[str], revision: str | None = None) -> Path | None:
    """The cached snapshot of a repository as far as ``patterns`` go; None if it is incomplete. Never uses the network.

    Args:
        repo: ``owner/name``.
        patterns: those with which it was downloaded: the rest of the repository may be missing.
        revision: a branch, tag or commit; None is the main branch.
    """
    try:
        with _quiet():
            return Path(
                huggingface_hub.snapshot_download(
                    repo,
                    revision=_whole_commit(repo, revision),
                    allow_patterns=list(patterns),
                    local_files_only=True,
                )
            )
    except Exception:  # the client raises many kinds; each means that the snapshot cannot be used
        return None


def cached_snapshots(repo: str) -> list[Path]:
    """Every snapshot of a model repository in the hub's cache, newest first, complete or not."""
    folder = Path(constants.HF_HUB_CACHE) / constants.REPO_ID_SEPARATOR.join(["models", *repo.split("/")])
    snapshots = (path for path in (folder / "snapshots").glob("*") if path.is_dir())
    return sorted(snapshots, key=lambda path: (path.stat().st_mtime, path.name), reverse=True)


def _whole_commit(repo: str, revision: str | None) -> str | None:
    """The cached commit that a revision abbreviates, if it is the only one; else the revision itself."""
    if revision is None or not re.fullmatch(r"[0-9a-f]{7,39}", revision):
        return revision
    found = [path.name for path in cached_snapshots(repo) if path.name.startswith(revision)]
    return found[0] if len(found) == 1 else revision


def partial_folder(repo: str, *, revision: str | None = None) -> Path | None:
    """The snapshot in the hub's cache that holds the repository's config.json, whatever else is missing from it."""
    try:
        path = huggingface_hub.try_to_load_from_cache(repo, "config.json", revision=_whole_commit(repo, revision))
    except Exception:  # as above: of a name that is none
        return None
    return Path(path).parent if isinstance(path, str) else None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub."""
    return bool(constants.HF_HUB_OFFLINE)


def list_files(repo: str, *, revision: str | None = None, token: str | None = None) -> list[str]:
    """Names of all files of a repository.

    Raises:
        MechstudyError: as `download_folder`.
    """
    with hub_errors(place_name(repo, revision=revision)):
        return list(huggingface_hub.HfApi(token=token).list_repo_files(repo, revision=revision))


def dataset_files(repo: str, *, revision: str | None = None) -> dict[str, int]:
    """Names and sizes in bytes of all files of a dataset repository.

    Raises:
        MechstudyError: as `download_folder`.
    """
    with hub_errors(place_name(repo, revision=revision)):
        info = huggingface_hub.HfApi().dataset_info(repo, revision=revision, files_metadata=True)
    return {file.rfilename: file.size or 0 for file in info.siblings or ()}


def download_dataset(repo: str, names: Sequence[str], *, revision: str | None = None) -> Path:
    """Downloads files of a dataset repository, unless they are in the hub's cache, and returns their folder.

    Raises:
        MechstudyError: as `download_folder`.
    """
    with hub_errors(place_name(repo, revision=revision)):
        return Path(
            huggingface_hub.snapshot_download(
                repo, repo_type="dataset", revision=revision, allow_patterns=[escape(name) for name in names]
            )
        )


def cached_dataset(repo: str, *, revision: str | None = None) -> Path | None:
    """The cached snapshot of a dataset repository, complete or not; None if there is none. Never uses the network."""
    try:
        with _quiet():
            return Path(
                huggingface_hub.snapshot_download(
                    repo, repo_type="dataset", revision=revision, allow_patterns=[], local_files_only=True
                )
            )
    except Exception:  # as in `cached_folder`
        return None


def listed_files(snapshot: Path) -> list[str]:
    """Names of all files of a cached snapshot's repository; without the client's listing, of those that are there."""
    try:
        return list(read_json(snapshot.parents[1] / "trees" / f"{snapshot.name}.json")["files"])
    except (OSError, MechstudyError, KeyError, TypeError):
        return [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]


def file_exists(repo: str, name: str, *, revision: str | None = None, token: str | None = None) -> bool:
    """Whether a model repository holds a file.

    Raises:
        MechstudyError: as `download_folder`.
    """
    with hub_errors(place_name(repo, name, revision)):
        return huggingface_hub.HfApi(token=token).file_exists(repo, name, revision=revision, repo_type="model")


def create_repository(
    repo: str, *, private: bool | None = None, revision: str | None = None, token: str | None = None
) -> None:
    """Creates a model repository, and the branch ``revision``, where they do not exist yet.

    Args:
        repo: ``owner/name``.
        private: of a repository that is created; None is the owner's default.
        revision: a branch; None is the main one.
        token: None uses the one of ``hf auth login`` or HF_TOKEN.

    Raises:
        MechstudyError: the name is not valid, the hub refuses, or it cannot be reached.
    """
    with hub_errors(place_name(repo, revision=revision)):
        api = huggingface_hub.HfApi(token=token)
        api.create_repo(repo, private=private, repo_type="model", exist_ok=True)
        if revision:
            api.create_branch(repo, branch=revision, repo_type="model", exist_ok=True)


def upload_folder(
    folder: Path, repo: str, *, message: str, revision: str | None = None, token: str | None = None
) -> str:
    """Uploads everything in a local folder to a model repository as one commit, and returns the commit's address.

    Raises:
        MechstudyError: as `create_repository`.
    """
    with hub_errors(place_name(repo, revision=revision)):
        commit = huggingface_hub.HfApi(token=token).upload_folder(
            repo_id=repo, repo_type="model", folder_path=str(folder), revision=revision, commit_message=message
        )
    return str(commit.commit_url)


def place_name(repo: str, inside: str = "", revision: str | None = None) -> str:
    """A place on the hub as users write it: ``hf:owner/name/inside@revision``."""
    return f"hf:{repo}" + (f"/{inside}" if inside else "") + (f"@{revision}" if revision else "")


@contextmanager
def hub_errors(place: str) -> Iterator[None]:
    """Turns any error of the hub's client inside the block into a MechstudyError that says what to do.

    Args:
        place: where the error is reported (see `place_name`).
    """
    try:
        with _quiet():
            yield
    except MechstudyError:
        raise
    except Exception as error:  # the client raises its own errors and those of several libraries
        what, fix = _explanation(error)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        facts = {"cache": str(constants.HF_HUB_CACHE)} if fix == OFFLINE_FIX else {"reason": reason}
        raise MechstudyError(what, where=place, facts=facts, fix=fix) from error


def _explanation(error: Exception) -> tuple[str, str]:
    """What is wrong, and what to do about it."""
    from huggingface_hub import errors  # imports the HTTP client: only needed here

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "the repository is gated", "ask for access on its page, then `hf auth login` or HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        fix = "check owner/name; for a private one `hf auth login` or HF_TOKEN"
        return "there is no such repository, or it is private", fix
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision", "a branch, tag or commit of it"
    if isinstance(error, errors.HFValidationError):
        return "the hub does not accept this name", "owner/name of letters, digits, - _ and ."
    if isinstance(error, errors.LocalTokenNotFoundError) or status in (401, 403):
        return "the hub refuses this account", "`hf auth login` with a token that may do this, or HF_TOKEN"
    if isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return "the hub is not asked (HF_HUB_OFFLINE), and its cache does not hold it", OFFLINE_FIX
    fix = "check the network; offline, copy the folder here and use its path"
    return "the hub cannot be reached, or something is wrong there", fix


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the client's log of its retries; the error that ends them is reported instead."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
