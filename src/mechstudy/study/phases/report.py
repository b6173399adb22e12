"""Phase 6: the static report, from artifacts alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifacts import Artifact, ArtifactWriter


def run(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes the pages; ``index.html`` is where to begin."""
    from mechstudy.report.build import build_report

    paths = {name: artifact.path for name, artifact in inputs.items()}
    units = [unit_record(name, a) for name, a in inputs.items()]
    build_report(spec["study"], paths, [*units, *map(dict, runtime.absent)], out.path)


def unit_record(name: str, artifact: Artifact) -> dict[str, Any]:
    """What the report and the summary say of a finished unit."""
    m = artifact.manifest
    return {
        "name": name,
        "phase": m["phase"],
        "artifact": f"{artifact.path.parent.name}/{artifact.path.name}",
        "id": artifact.id,
        "seconds": m["seconds"],
        "started": m["started"],
        "finished": m["finished"],
        "status": "done",
        "peak_rss_bytes": m["peak_rss_bytes"],
        "files": {file: entry["size"] for file, entry in m["files"].items()},
        "version": m["version"],
        "spec": m["spec"],
        "inputs": m["inputs"],
        "provenance": m["provenance"],
        "discarded": m.get("discarded", []),
    }
