from .data import ReportData as ReportData
from .data import UnitFiles as UnitFiles
from .pages import build_report as build_report
from .patch_page import Swept as Swept
from .patch_page import patch_page as patch_page
from .summary import build_summary as build_summary
from .summary import findings as findings
