"""Alarms: conditions on the measured series, how long they must hold, what confirms them, and what they ask for."""

from divmon.alarms.lifecycle import Alarms
from divmon.alarms.loading import default_rules, dump_rules, load_rules, load_ruleset, restore_rules
from divmon.alarms.rules import Rule
from divmon.alarms.ruleset import RuleSet, Silence

__all__ = [
    "Alarms",
    "Rule",
    "RuleSet",
    "Silence",
    "default_rules",
    "dump_rules",
    "load_rules",
    "load_ruleset",
    "restore_rules",
]
