"""Self-training in rounds: sample, criticise, refine, filter, train from the base; divmon watches every round."""

from divmon.selftraining.driver import SelfTraining
from divmon.selftraining.results import Round, SelfTrained, beside

__all__ = ["Round", "SelfTrained", "SelfTraining", "beside"]
