"""A model in a Hugging Face cache, as a download with patterns leaves it."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path


def put_in_hub_cache(home: Path, model: Path, repo: str, commit: str) -> Path:
    """Adds a snapshot of a model's folder, which ``main`` then names, and returns it.

    Files are links to blobs. The listing of the repository names files that were not downloaded.

    Args:
        home: as in HF_HOME.
        model: the files; links are followed.
        repo: ``owner/name``.
        commit: 40 hex digits.
    """
    folder = home / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for new in (folder / "blobs", folder / "refs", folder / "trees", snapshot):
        new.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        blob = folder / "blobs" / sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    (folder / "refs" / "main").write_text(commit)
    names = [file.name for file in model.iterdir()] + ["README.md", ".gitattributes"]
    files = {name: {"size": 1, "blob_id": "b" * 40} for name in names}
    (folder / "trees" / f"{commit}.json").write_text(json.dumps({"format_version": 1, "files": files}))
    return snapshot
