"""Samplers: where completions come from. Nothing heavy is imported here."""
