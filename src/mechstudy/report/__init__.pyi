from .build import build_report as build_report
from .claims import Claim as Claim
from .data import ReportData as ReportData
from .data import UnitFiles as UnitFiles
from .numbers import FILES as FILES
from .numbers import LOGS as LOGS
from .numbers import Address as Address
from .numbers import addresses as addresses
from .numbers import at as at
from .numbers import content_of as content_of
from .numbers import differences as differences
from .numbers import parse_address as parse_address
from .summary import build_summary as build_summary
from .summary import findings as findings

__all__ = [
    "FILES",
    "LOGS",
    "Address",
    "Claim",
    "ReportData",
    "UnitFiles",
    "addresses",
    "at",
    "build_report",
    "build_summary",
    "content_of",
    "differences",
    "findings",
    "parse_address",
]
