"""Measurements of speed: whole builds beside mergekit's, and plans of large models."""
