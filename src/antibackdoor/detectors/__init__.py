"""Detectors: which samples are suspicious."""
