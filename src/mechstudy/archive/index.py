"""What is in an archive: the list it begins with, which names may be in it, and how it is compressed."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import json_bytes
from mechstudy.monitoring.instrumentation import PROFILE
from mechstudy.monitoring.record import SUFFIX as USAGE
from mechstudy.runner.batch_size_cache import BATCHES
from mechstudy.store.manifest import MANIFEST
from mechstudy.study.run_folder import ARTIFACTS, STUDY, SUMMARY

CONTENTS = "mechstudy-archive.json"
REQUIREMENTS = "requirements.txt"
RESOLVED = "resolved.json"
SCHEMA = 2  # 1 had nothing that lies beside artifacts
READABLE = (1, SCHEMA)
TOP = (STUDY, REQUIREMENTS, RESOLVED, SUMMARY)  # beside the artifacts and the files a study reads
OURS = (
    ARTIFACTS, "report", "slurm", "units", "locks", "lock", "log.txt", "progress.json", BATCHES, PROFILE,
    CONTENTS, *TOP,
)  # fmt: skip

Compression = Literal["none", "gzip", "zstd"]
SUFFIX: Mapping[str, str] = {"none": ".tar", "gzip": ".tar.gz", "zstd": ".tar.zst"}
_LEVEL = 1  # gzip: weights hardly get smaller, and higher levels take several times as long
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class PackedUnit:
    """A unit of the study. ``artifact`` is ``phase/folder``, None where it is not finished; ``whole``: with payload."""

    name: str
    phase: str
    retention: str
    id: str | None = None
    artifact: str | None = None
    whole: bool = False


@dataclass(frozen=True)
class Contents:
    """An archive's own list. ``files``: name -> sha256 and size of everything else in it, ``sources`` those that the
    study reads, ``overrides`` what it was opened with, ``notes`` what is not in it and is needed."""

    study: str
    overrides: Sequence[str]
    units: Sequence[PackedUnit]
    files: Mapping[str, Mapping[str, Any]]
    sources: Sequence[str] = ()
    notes: Sequence[str] = ()
    schema: int = SCHEMA

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json_bytes(asdict(self))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(int(file["size"]) for file in self.files.values())

    def of_artifact(self, artifact: str) -> dict[str, Mapping[str, Any]]:
        """File name inside an artifact -> sha256 and size, of what is packed of it."""
        prefix = f"{ARTIFACTS}/{artifact}/"
        return {name[len(prefix) :]: file for name, file in self.files.items() if name.startswith(prefix)}


def contents_from(found: Any) -> Contents:
    """The list as read, with every name and number in it checked.

    Raises:
        MechstudyError: it is not such a list, or a name in it leads out of the folder it is unpacked into.
    """
    try:
        if found["schema"] not in READABLE:
            raise MechstudyError(
                f"the archive has schema {found['schema']!r}, and this version reads {SCHEMA}", fix="a newer mechstudy"
            )
        units = [PackedUnit(**unit) for unit in found["units"]]
        files = {str(name): _file(entry) for name, entry in found["files"].items()}
        contents = Contents(
            str(found["study"]), [str(o) for o in found["overrides"]], units, files,
            [str(name) for name in found["sources"]], [str(note) for note in found["notes"]],
        )  # fmt: skip
        _check_names(contents)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, MechstudyError):
            raise
        raise MechstudyError(f"the archive's list is not whole: {type(error).__name__}: {error}") from error
    return contents


def _file(entry: Mapping[str, Any]) -> dict[str, Any]:
    sha, size = entry["sha256"], entry["size"]
    if not isinstance(sha, str) or len(sha) != 64 or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError("a file without a checksum or a size")
    return {"sha256": sha, "size": size}


def _check_names(contents: Contents) -> None:
    artifacts = {unit.artifact for unit in contents.units if unit.artifact is not None}
    for name in contents.files:
        parts = safe_parts(name)
        if name in TOP:
            continue
        if parts[0] == ARTIFACTS:
            if is_usage(name) and "/".join(parts[1:]).removesuffix(USAGE) in artifacts:
                continue
            if len(parts) < 4 or "/".join(parts[1:3]) not in artifacts or _internal(parts[2]):
                raise MechstudyError("a file of no artifact is in the archive", facts={"name": repr(name)})
        elif parts[0] == PROFILE and len(parts) > 1:
            continue
        elif name not in contents.sources or parts[0] in OURS or parts[0].startswith(".restore"):
            raise MechstudyError("a file that does not belong there is in the archive", facts={"name": repr(name)})
    for artifact in artifacts:
        if f"{ARTIFACTS}/{artifact}/{MANIFEST}" not in contents.files:
            raise MechstudyError("an artifact without its manifest is in the archive", facts={"artifact": artifact})


def is_usage(name: str) -> bool:
    """Whether a file is what a unit used, beside its artifact."""
    return name.startswith(f"{ARTIFACTS}/") and name.count("/") == 2 and name.endswith(USAGE)


def lies_beside(name: str) -> bool:
    """Whether a file tells of how something ran: no other file depends on it, and the one that is there is as good."""
    return is_usage(name) or name.startswith(f"{PROFILE}/")


def safe_parts(name: str) -> tuple[str, ...]:
    """The parts of a relative name that stays inside its folder.

    Raises:
        MechstudyError: it is absolute, has ``..`` or is no name on every system.
    """
    parts = name.split("/")
    bad = any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts)
    if bad or PurePosixPath(name).is_absolute() or (len(parts[0]) == 2 and parts[0][1] == ":"):
        raise MechstudyError("a name in the archive leads out of its folder", facts={"name": repr(name)})
    return tuple(parts)


def _internal(folder: str) -> bool:
    return folder.startswith(".") or folder.endswith((".partial", ".replaced", ".damaged"))


@contextmanager
def compressed(raw: IO[bytes], compression: Compression) -> Iterator[IO[bytes]]:
    """Where to write what is then compressed into ``raw``, to the same bytes each time."""
    if compression == "none":
        yield raw
    elif compression == "gzip":
        with gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=raw, mtime=0) as out:
            yield cast("IO[bytes]", out)
    else:
        with _zstandard().ZstdCompressor(level=3).stream_writer(raw, closefd=False) as out:
            yield out


@contextmanager
def decompressed(path: Path) -> Iterator[IO[bytes]]:
    """The tar inside an archive, whatever its compression."""
    with path.open("rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "none")
        if kind == "gzip":
            with gzip.GzipFile(fileobj=raw) as opened:
                yield cast("IO[bytes]", opened)
        elif kind == "zstd":
            with _zstandard().ZstdDecompressor().stream_reader(raw) as opened:
                yield opened
        else:
            yield raw


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MechstudyError(
            "zstd needs the package zstandard", fix="pip install zstandard, or --compress gzip"
        ) from None
    return zstandard


def require(compression: Compression) -> None:
    """Refuses a compression that is not at hand, before anything is read."""
    if compression == "zstd":
        _zstandard()
