from .check import Check as Check
from .check import Status as Status
from .checks import check_machine as check_machine
from .run import Diagnosis as Diagnosis
from .run import diagnose as diagnose

__all__ = [
    "Check",
    "Diagnosis",
    "Status",
    "check_machine",
    "diagnose",
]
