"""Probes: the fixed prompts that are sampled at every evaluation."""

from divmon.probes.probeset import PACKS, ProbeSet
from divmon.probes.rows import probes_from_rows

__all__ = ["PACKS", "ProbeSet", "probes_from_rows"]
