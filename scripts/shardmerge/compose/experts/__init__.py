"""Mixtures of experts: assembled from dense models, and taken apart."""
