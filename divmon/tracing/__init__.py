"""One probe set over a lineage of checkpoints, and which stage lost the diversity: ``divmon trace``."""
