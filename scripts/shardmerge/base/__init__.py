"""Everything that knows nothing about models: errors, files, claims, digests, types, text."""
