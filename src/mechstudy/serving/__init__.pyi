from .live import LiveRun as LiveRun
from .server import ReportServer as ReportServer
from .server import require_report as require_report
