"""Kinds of thinking in a model's completions, and what resampling in each of them gains over as many plain draws."""
