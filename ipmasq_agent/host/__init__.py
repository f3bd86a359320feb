"""The machine: programs, devices and routes, eBPF objects, who else runs here.

Knows nothing of rules or documents.
"""
