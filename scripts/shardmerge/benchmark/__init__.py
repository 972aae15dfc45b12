"""Measures models: lm-eval, its tasks and their scores."""
