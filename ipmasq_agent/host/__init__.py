"""The machine: programs, namespaces, devices and routes, eBPF objects, who else runs here.

Knows nothing of rules or documents.
"""
