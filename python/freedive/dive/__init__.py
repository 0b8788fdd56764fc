"""`freedive dive`: all stages on a small invented web, and the report. Only `tasks/` and this folder know the town."""

from .report import write_report
from .stage import DiveConfig, run

__all__ = ["DiveConfig", "run", "write_report"]
