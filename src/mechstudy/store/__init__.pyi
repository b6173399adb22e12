from .artifact import Artifact as Artifact
from .artifact import Problem as Problem
from .artifact_writer import SCRATCH as SCRATCH
from .artifact_writer import ArtifactWriter as ArtifactWriter
from .artifacts import DAMAGED as DAMAGED
from .artifacts import UNPUBLISHED as UNPUBLISHED
from .artifacts import ArtifactStore as ArtifactStore
from .checkpoint import load_checkpoint as load_checkpoint
from .checkpoint import save_checkpoint as save_checkpoint
from .lock import FileLock as FileLock
from .lock import RunLock as RunLock
from .manifest import MANIFEST as MANIFEST
from .manifest import artifact_id as artifact_id
from .manifest import manifest_is_sound as manifest_is_sound
from .manifest import read_manifest as read_manifest
from .manifest import sha256_of as sha256_of
from .manifest import sign as sign
from .manifest import slug as slug
from .manifest import write_manifest as write_manifest
from .provenance import current_provenance as current_provenance
from .provenance import package_index as package_index
from .sessions import job_of as job_of
from .sessions import read_sessions as read_sessions
from .sessions import sessions_of as sessions_of
from .sessions import this_session as this_session

__all__ = [
    "DAMAGED",
    "MANIFEST",
    "SCRATCH",
    "UNPUBLISHED",
    "Artifact",
    "ArtifactStore",
    "ArtifactWriter",
    "FileLock",
    "Problem",
    "RunLock",
    "artifact_id",
    "current_provenance",
    "job_of",
    "load_checkpoint",
    "manifest_is_sound",
    "package_index",
    "read_manifest",
    "read_sessions",
    "save_checkpoint",
    "sessions_of",
    "sha256_of",
    "sign",
    "slug",
    "this_session",
    "write_manifest",
]
