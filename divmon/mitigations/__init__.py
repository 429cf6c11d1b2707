"""Mitigations decide what to do about an alarm; the trainer's side (`divmon.levers`) does it."""

from divmon.mitigations.base import BUILT_IN, Mitigation, decide, mitigation
from divmon.mitigations.levers import Lever, LeverBook
from divmon.mitigations.pairs import divpo_pairs
from divmon.mitigations.rollback import RollbackBook
from divmon.mitigations.settings import LeverSettings, RollbackSettings, lever_settings, rollback_settings

__all__ = [
    "BUILT_IN",
    "Lever",
    "LeverBook",
    "LeverSettings",
    "Mitigation",
    "RollbackBook",
    "RollbackSettings",
    "decide",
    "divpo_pairs",
    "lever_settings",
    "mitigation",
    "rollback_settings",
]
