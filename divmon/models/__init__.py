"""Models that metrics may ask for, loaded by name and injected; no model library is imported until one is asked for."""

from divmon.models.encoder import CachedEncoder, load_encoder

__all__ = ["CachedEncoder", "load_encoder"]
