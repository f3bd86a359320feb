"""Benchmarks: each prints medians, what they were measured on, and asserts nothing."""
