"""Benchmarks made of cells: one measurement each, kept as it is made, resumed where it was stopped."""
