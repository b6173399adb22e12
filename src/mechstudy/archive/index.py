"""The list of contents of an archive, the names allowed in it, and its compression."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, Literal, cast

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import json_bytes
from mechstudy.features.asked_labels import ASKED
from mechstudy.monitoring.instrumentation import PROFILE
from mechstudy.monitoring.record import USAGE_SUFFIX as USAGE
from mechstudy.runner.run_unit import BATCHES
from mechstudy.store.artifacts import UNPUBLISHED
from mechstudy.store.manifest import MANIFEST
from mechstudy.study.run_folder import ARTIFACTS, EDITS, STUDY, SUMMARY

CONTENTS = "mechstudy-archive.json"
REQUIREMENTS = "requirements.txt"
RESOLVED = "resolved.json"
SCHEMA = 2  # 1 had no usage files and no profiles
READABLE = (1, SCHEMA)
READERS = (EDITS, ASKED)  # what readers of a run keep in it
TOP = (STUDY, REQUIREMENTS, RESOLVED, SUMMARY, *READERS)  # files at the top of an archive
OURS = (
    ARTIFACTS, "report", "slurm", "units", "locks", "lock", "log.txt", "progress.json", BATCHES, PROFILE,
    CONTENTS, *TOP,
)  # fmt: skip

Compression = Literal["none", "gzip", "zstd"]
SUFFIX: Mapping[str, str] = {"none": ".tar", "gzip": ".tar.gz", "zstd": ".tar.zst"}
_LEVEL = 1  # of gzip: higher levels take several times as long and hardly make weights smaller
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class PackedUnit:
    """A unit of the study. ``artifact`` is ``phase/folder``, or None if unfinished; ``whole``: with its payload."""

    name: str
    phase: str
    retention: str
    id: str | None = None
    artifact: str | None = None
    whole: bool = False


class PackedFile(TypedDict):
    """Checksum and size of a file."""

    sha256: Annotated[str, Field(min_length=64, max_length=64)]
    size: Annotated[int, Field(strict=True, ge=0)]


@dataclass(frozen=True)
class Contents:
    """The list of contents of an archive.

    ``files`` gives sha256 and size of every other file, ``sources`` names the files that the study reads,
    ``overrides`` are those the study was opened with, ``notes`` say what a restored run needs beside the archive.
    """

    study: str
    overrides: Sequence[str]
    units: Sequence[PackedUnit]
    files: Mapping[str, PackedFile]
    sources: Sequence[str] = ()
    notes: Sequence[str] = ()
    schema: int = SCHEMA

    def to_bytes(self) -> bytes:
        """The list as JSON."""
        return json_bytes(asdict(self))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file["size"] for file in self.files.values())

    def of_artifact(self, artifact: str) -> dict[str, PackedFile]:
        """The packed files of an artifact, without its manifest: name inside it -> sha256 and size."""
        prefix = f"{ARTIFACTS}/{artifact}/"
        packed = {name.removeprefix(prefix): file for name, file in self.files.items() if name.startswith(prefix)}
        return {name: file for name, file in packed.items() if name != MANIFEST}


def contents_from(values: Any) -> Contents:
    """The list from its JSON, with every name and number checked.

    Raises:
        MechstudyError: it is no such list, or a name in it leads out of the folder it is unpacked into.
    """
    schema = values.get("schema") if isinstance(values, Mapping) else None
    if schema not in READABLE:
        raise MechstudyError(
            f"the archive has schema {schema!r}, and this version reads {SCHEMA}", fix="a newer mechstudy"
        )
    try:
        contents = TypeAdapter(Contents).validate_python(values)
    except ValidationError as error:
        raise MechstudyError(f"the archive's list of contents is damaged: {error}") from error
    _check_names(contents)
    return contents


def _check_names(contents: Contents) -> None:
    artifacts = {unit.artifact for unit in contents.units if unit.artifact is not None}
    for name in contents.files:
        parts = safe_parts(name)
        if name in TOP:
            continue
        if parts[0] == ARTIFACTS:
            if is_usage(name) and "/".join(parts[1:]).removesuffix(USAGE) in artifacts:
                continue
            published = "/".join(parts[1:3]) in artifacts and not parts[2].startswith(".")
            if len(parts) < 4 or not published or parts[2].endswith(UNPUBLISHED):
                raise MechstudyError("the archive holds a file of no artifact", facts={"name": repr(name)})
        elif parts[0] == PROFILE and len(parts) > 1:
            continue
        elif name not in contents.sources or parts[0] in OURS or parts[0].startswith(".restore"):
            raise MechstudyError("the archive holds a file that does not belong there", facts={"name": repr(name)})
    for artifact in artifacts:
        if f"{ARTIFACTS}/{artifact}/{MANIFEST}" not in contents.files:
            raise MechstudyError("the archive holds an artifact without its manifest", facts={"artifact": artifact})


def is_usage(name: str) -> bool:
    """Whether a file is the usage file beside an artifact."""
    return name.startswith(f"{ARTIFACTS}/") and name.count("/") == 2 and name.endswith(USAGE)


def is_record(name: str) -> bool:
    """Whether a file only records how units ran (usage, profiles): an existing one is never replaced."""
    return is_usage(name) or name.startswith(f"{PROFILE}/")


def safe_parts(name: str) -> tuple[str, ...]:
    """The parts of a relative name that stays inside its folder.

    Raises:
        MechstudyError: it is absolute, has ``..`` or is not a valid name on every system.
    """
    parts = name.split("/")
    bad = any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts)
    if bad or PurePosixPath(name).is_absolute() or (len(parts[0]) == 2 and parts[0][1] == ":"):
        raise MechstudyError("a name in the archive leads out of its folder", facts={"name": repr(name)})
    return tuple(parts)


@contextmanager
def compressed(raw: IO[bytes], compression: Compression) -> Iterator[IO[bytes]]:
    """A stream that compresses into ``raw``, to the same bytes each time."""
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
    """The tar inside an archive, of any compression."""
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
    """Refuses a compression whose package is not installed."""
    if compression == "zstd":
        _zstandard()
