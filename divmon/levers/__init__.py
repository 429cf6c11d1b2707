"""Levers carry mitigations out on a trainer (torch, TRL). What they do, and when, is decided in `mitigations`."""

from divmon.levers.board import Board
from divmon.levers.carrier import Carrier

__all__ = ["Board", "Carrier"]
