"""Tokenizers as data: vocabularies, how several become one, and which rows of embeddings follow.

Nothing here imports a tokenizer library: files are JSON, and all is decided while planning.
"""
