"""Critique-guided resampling: find what a policy lost, criticise, refine, and keep only what is worth learning."""

from divmon.mitigations.resample import ResampleSettings
from divmon.resampling.base import Attempt, Critic, Refinement, Request, Resampled, Writer, Written
from divmon.resampling.dialogue import feasible_by
from divmon.resampling.lineage import Lineage
from divmon.resampling.prompts import Templates
from divmon.resampling.resampler import Resampler

__all__ = [
    "Attempt",
    "Critic",
    "Lineage",
    "Refinement",
    "Request",
    "ResampleSettings",
    "Resampled",
    "Resampler",
    "Templates",
    "Writer",
    "Written",
    "feasible_by",
]
