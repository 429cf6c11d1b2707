"""Critique-guided resampling: find what a policy lost, criticise, refine, and keep only what is worth learning."""
