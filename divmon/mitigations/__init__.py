"""Mitigations decide what to do about an alarm; the trainer's side does it."""

from divmon.mitigations.base import BUILT_IN, Mitigation, decide, mitigation

__all__ = ["BUILT_IN", "Mitigation", "decide", "mitigation"]
