"""What knows nothing of models: errors, files, claims, digests, types, text."""
