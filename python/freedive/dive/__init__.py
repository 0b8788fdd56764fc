"""`freedive dive`: the list of all stages, on a small invented web, and the report. Together with `tasks/` the only code that knows the town."""

from .report import write_report
from .stage import DiveConfig, run

__all__ = ["DiveConfig", "run", "write_report"]
