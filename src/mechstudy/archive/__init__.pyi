from .archive import Archived as Archived
from .archive import archive_run as archive_run
from .clean import Cleaned as Cleaned
from .clean import Entry as Entry
from .clean import clean_run as clean_run
from .reproduce import ReportNumber as ReportNumber
from .reproduce import Rerun as Rerun
from .reproduce import describe_number as describe_number
from .reproduce import find_number as find_number
from .reproduce import run_again as run_again
from .restore import Restored as Restored
from .restore import restore_run as restore_run
from .restore import study_command as study_command
from .verify import Verified as Verified
from .verify import verify_run as verify_run

__all__ = [
    "Archived",
    "Cleaned",
    "Entry",
    "ReportNumber",
    "Rerun",
    "Restored",
    "Verified",
    "archive_run",
    "clean_run",
    "describe_number",
    "find_number",
    "restore_run",
    "run_again",
    "study_command",
    "verify_run",
]
