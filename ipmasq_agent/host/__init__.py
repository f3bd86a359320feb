"""The machine: programs, files that change, devices and routes, threads, who else runs here.

Knows nothing of rules or documents.
"""
