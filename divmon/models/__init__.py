"""Models that metrics may ask for, loaded by name and injected; no model library is imported until one is asked for."""

from divmon.models.encoder import CachedEncoder, load_encoder
from divmon.models.judges import load_equivalence, load_judges, load_nli
from divmon.models.pairs import CachedPairs

__all__ = ["CachedEncoder", "CachedPairs", "load_encoder", "load_equivalence", "load_judges", "load_nli"]
