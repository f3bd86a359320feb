"""A policy as maps that programs of our own look up, at the hooks of devices (tc)."""
