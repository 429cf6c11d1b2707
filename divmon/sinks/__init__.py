"""Where observations go: trackers and the console. Importing this loads no tracker."""

from divmon.sinks.base import SINKS, Sink, as_sink, curves
from divmon.sinks.console import ConsoleSink
from divmon.sinks.reporters import ReporterSink
from divmon.sinks.trackio import TrackioSink
from divmon.sinks.wandb import WandbSink

__all__ = ["SINKS", "ConsoleSink", "ReporterSink", "Sink", "TrackioSink", "WandbSink", "as_sink", "curves"]
