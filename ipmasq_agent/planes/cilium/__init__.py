"""Cilium's own map of what is not masqueraded, read only."""
