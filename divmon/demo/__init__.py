"""The echo chamber in miniature: a toy task, its tiny model, and a GRPO run that loses its formats."""
