"""Runs side by side at equal quality, never at equal step: ``divmon compare``."""
