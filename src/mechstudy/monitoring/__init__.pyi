from .bottlenecks import PhaseUsage as PhaseUsage
from .instrumentation import PROFILE as PROFILE
