"""divmon watches the diversity of a language model's outputs while it is post-trained.

    trainer = GRPOTrainer(..., callbacks=[divmon.DiversityCallback()])

The names below are the public interface. They load on first use; importing divmon loads no GPU stack.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from divmon.alarms import Rule
    from divmon.attach import watch
    from divmon.callback import DiversityCallback
    from divmon.errors import ConfigError, DivmonError
    from divmon.history import History
    from divmon.measuring import measure
    from divmon.metrics import METRICS
    from divmon.mitigations import divpo_pairs
    from divmon.models.programs import CodeJudge
    from divmon.monitor import Monitor, replay
    from divmon.probes import ProbeSet
    from divmon.questions import hivemind, human_gap, voice
    from divmon.records import Measurement, Observation, Probe, SampleBatch
    from divmon.samplers.file import read_completions
    from divmon.selftraining import SelfTraining
    from divmon.settings import Settings
    from divmon.tracing.engine import trace
    from divmon.widening.engine import widen

__version__ = "0.1.0"

_HOME = {
    "CodeJudge": "models.programs",
    "METRICS": "metrics",
    "ConfigError": "errors",
    "DiversityCallback": "callback",
    "DivmonError": "errors",
    "History": "history",
    "Measurement": "records",
    "Monitor": "monitor",
    "Observation": "records",
    "Probe": "records",
    "ProbeSet": "probes",
    "Rule": "alarms",
    "SampleBatch": "records",
    "SelfTraining": "selftraining",
    "Settings": "settings",
    "divpo_pairs": "mitigations",
    "hivemind": "questions",
    "human_gap": "questions",
    "measure": "measuring",
    "read_completions": "samplers.file",
    "replay": "monitor",
    "trace": "tracing.engine",
    "voice": "questions",
    "watch": "attach",
    "widen": "widening.engine",
}
__all__ = [
    "METRICS",
    "CodeJudge",
    "ConfigError",
    "DiversityCallback",
    "DivmonError",
    "History",
    "Measurement",
    "Monitor",
    "Observation",
    "Probe",
    "ProbeSet",
    "Rule",
    "SampleBatch",
    "SelfTraining",
    "Settings",
    "divpo_pairs",
    "hivemind",
    "human_gap",
    "measure",
    "read_completions",
    "replay",
    "trace",
    "voice",
    "watch",
    "widen",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'divmon' has no attribute {name!r}")
    return getattr(importlib.import_module(f"divmon.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
