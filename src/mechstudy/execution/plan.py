"""Moved to `execution.budget`; this module only keeps the names others import."""

from mechstudy.core.sizes import human
from mechstudy.execution.budget.disk import disk_need, disk_refusal

__all__ = ["disk_need", "disk_refusal", "human"]
