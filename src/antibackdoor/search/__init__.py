"""The default search for poisoned samples."""
