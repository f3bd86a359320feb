"""A policy as a table of our own in nf_tables."""
