from .instrumentation import PROFILE as PROFILE
from .record import USAGE_SUFFIX as USAGE_SUFFIX
from .record import Sample as Sample
from .record import Session as Session
from .record import read_usage as read_usage
from .record import to_lines as to_lines
from .record import usage_file as usage_file
from .record import usages_below as usages_below
from .run_usage import PhaseUsage as PhaseUsage
from .run_usage import by_phase as by_phase
from .sampler import monitored as monitored
from .summary import SHORT as SHORT
from .summary import Point as Point
from .summary import Use as Use
from .summary import points as points
from .summary import use_of as use_of

__all__ = [
    "PROFILE",
    "SHORT",
    "USAGE_SUFFIX",
    "PhaseUsage",
    "Point",
    "Sample",
    "Session",
    "Use",
    "by_phase",
    "monitored",
    "points",
    "read_usage",
    "to_lines",
    "usage_file",
    "usages_below",
    "use_of",
]
