"""Hostile input in numbers: real files, changed by a seeded generator, to everything that reads."""
