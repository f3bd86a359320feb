"""A data plane that decides nothing: it keeps what it is told in a file for each family.

It is here to show what a plane has to bring along; docs/new-plane.md walks through it.
"""
