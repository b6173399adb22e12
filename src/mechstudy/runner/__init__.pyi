from . import validate as validate
from .completion import findings_of as findings_of
from .cost import Cost as Cost
from .cost import PhaseCost as PhaseCost
from .cost import cost_of as cost_of
from .job import LOG as LOG
from .measured_cost import Attempts as Attempts
from .processes.serving import led as led
from .results import RunResult as RunResult
from .run_unit import find_checkpoint as find_checkpoint
from .status import Status as Status
from .status import read_status as read_status
from .study_run import execute as execute
from .study_run import run_of as run_of

__all__ = [
    "LOG",
    "Attempts",
    "Cost",
    "PhaseCost",
    "RunResult",
    "Status",
    "cost_of",
    "execute",
    "find_checkpoint",
    "findings_of",
    "led",
    "read_status",
    "run_of",
    "validate",
]
