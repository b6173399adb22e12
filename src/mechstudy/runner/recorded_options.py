"""The options that finished units ran with, from their manifests, so that they run the same way again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechstudy.store.manifest import Artifact
from mechstudy.study.unit import Unit


@dataclass(frozen=True)
class AsMade:
    """The options of one unit; None where unknown.

    ``threads`` are those of each of its ``processes``, which is None for units that are never shared.
    """

    device: str | None
    threads: int | None
    processes: int | None
    batch_tokens: int | None

    @staticmethod
    def of(artifact: Artifact, unit: Unit) -> AsMade:
        """The options that made an artifact."""
        runtime = artifact.manifest.get("runtime") or {}
        n = int(runtime.get("world_size") or 1) if unit.phase.shares(unit) else None
        device = runtime.get("device")
        if n is not None and n > 1 and device is not None:
            device = str(device).partition(":")[0]  # the leader's was its own, the others had others
        return AsMade(device, runtime.get("threads"), n, runtime.get("batch_tokens"))

    @property
    def total_threads(self) -> int | None:
        """Threads of all its processes."""
        return None if self.threads is None else self.threads * (self.processes or 1)

    def options(self, device: str | None = None) -> dict[str, Any]:
        """Fields of `RunOptions`; ``device`` replaces the recorded one."""
        device = device or self.device or "cpu"
        options = {"threads": self.total_threads, "batch_tokens": self.batch_tokens}
        return {"device": device, "world_size": self.processes or 1, **{k: v for k, v in options.items() if v}}

    def words(self) -> list[str]:
        """The options of a command that runs units this way."""
        sets = {"compute.batch_tokens": self.batch_tokens, "compute.world_size": self.processes}
        words = [word for name, value in sets.items() if value for word in ("--set", f"{name}={value}")]
        words += ["--device", self.device] if self.device else []
        return [*words, *(["--threads", str(self.total_threads)] if self.threads else [])]

    def beside(self, other: AsMade) -> AsMade | None:
        """The options of one command that runs both as they ran; None where none can."""
        one, two = ((made.device, made.total_threads, made.batch_tokens) for made in (self, other))
        counts = {n for n in (self.processes, other.processes) if n is not None}
        if one != two or len(counts) > 1:
            return None
        return self if self.processes is not None else other


def together(made: Mapping[str, AsMade]) -> list[tuple[AsMade, list[str]]]:
    """Neighbouring units with the same options, grouped: as few commands as possible, in order."""
    groups: list[tuple[AsMade, list[str]]] = []
    for unit, how in made.items():
        both = groups[-1][0].beside(how) if groups else None
        if both is None:
            groups.append((how, [unit]))
        else:
            groups[-1] = (both, [*groups[-1][1], unit])
    return groups


def unlike(pairs: Iterable[tuple[Artifact, Artifact]]) -> list[str]:
    """Reasons why artifacts may differ: how the runs of each (before, after) pair differed."""
    units: dict[str, list[str]] = {}
    for before, after in pairs:
        for reason in _differences(before.manifest, after.manifest):
            units.setdefault(reason, []).append(before.unit)
    return [f"{reason} ({_named(names)})" for reason, names in units.items()]


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    one, two = before.get("runtime") or {}, after.get("runtime") or {}
    processes = int(one.get("world_size") or 1), int(two.get("world_size") or 1)
    if processes[0] != processes[1]:
        yield f"made by {processes[0]} processes, now by {processes[1]}"
    for name, text in (("device", "on"), ("threads", "threads:"), ("batch_tokens", "tokens per batch:"),
                       ("model_dtype", "the model in"), ("tf32", "TF32:")):  # fmt: skip
        if name == "device" and max(processes) > 1:
            continue
        if one.get(name) != two.get(name) and (one.get(name) is not None or two.get(name) is not None):
            yield f"made {text} {one.get(name)}, now {two.get(name)}"
    old, new = before.get("provenance") or {}, after.get("provenance") or {}
    for name in ("cpu", "gpu"):
        if old.get(name) and new.get(name) and _model(old[name]) != _model(new[name]):
            yield f"made with the {name.upper()} {_model(old[name])}, now {_model(new[name])}"
    versions = [(provenance.get("packages") or {}).get("torch") for provenance in (old, new)]
    if all(versions) and versions[0] != versions[1]:
        yield f"made with torch {versions[0]}, now {versions[1]}"


def _model(described: Any) -> str:
    return str(described.get("model") if isinstance(described, Mapping) else described)


def _named(units: Sequence[str]) -> str:
    return ", ".join(units[:3]) + (f" and {len(units) - 3} more" if len(units) > 3 else "")
