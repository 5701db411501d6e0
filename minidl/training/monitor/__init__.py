"""What goes on inside a network while it trains: measured every so many steps, kept in the run folder, drawn."""

from minidl.training.monitor.charts import draw
from minidl.training.monitor.measure import Monitor
from minidl.training.monitor.record import PERCENTILES, Record, read_records

__all__ = ["PERCENTILES", "Monitor", "Record", "draw", "read_records"]
