"""A policy as a chain of the nat table: a rule for each prefix, or one that asks a set."""
