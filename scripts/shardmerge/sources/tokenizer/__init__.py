"""A model's vocabulary, from its tokenizer's files."""
