from . import cancel as cancel
from . import logs as logs
from . import submission as submission
from . import why as why
from .frozen import thaw as thaw
from .job_status import jobs_now as jobs_now
from .profiles import resolved as resolved
from .record import has_record as has_record
from .record import overrides_of as overrides_of
from .record import read_record as read_record
from .requeue import after_worker as after_worker
from .submission import Asked as Asked
from .submission import Result as Result
from .why import Why as Why
from .worker import run_in_job as run_in_job

__all__ = [
    "Asked",
    "Result",
    "Why",
    "after_worker",
    "cancel",
    "has_record",
    "jobs_now",
    "logs",
    "overrides_of",
    "read_record",
    "resolved",
    "run_in_job",
    "submission",
    "thaw",
    "why",
]
