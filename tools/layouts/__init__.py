"""Tables of layouts, made from the installed transformers."""
