"""Data sets: samples without any truth, and one file for each format that can be read."""
