"""Alarms: conditions on the measured series, how long they must hold, and what they ask for."""

from divmon.alarms.lifecycle import Alarms
from divmon.alarms.loading import default_rules, dump_rules, load_rules, restore_rules
from divmon.alarms.rules import Rule

__all__ = ["Alarms", "Rule", "default_rules", "dump_rules", "load_rules", "restore_rules"]
