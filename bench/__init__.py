"""Developers' measurements: each prints medians, what they were measured on, and asserts nothing.

Beside the package, as they look at its insides and at test servers; what they share with
``ipmasq-agent bench`` they take from there.
"""
