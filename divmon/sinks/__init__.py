"""Where observations go: trackers and the console. Importing this loads no tracker."""

from divmon.sinks.base import SINKS, Sink, as_sink, curves
from divmon.sinks.console import ConsoleSink
from divmon.sinks.wandb import WandbSink

__all__ = ["SINKS", "ConsoleSink", "Sink", "WandbSink", "as_sink", "curves"]
