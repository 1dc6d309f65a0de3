"""Purifiers: a backdoored model, made clean."""
