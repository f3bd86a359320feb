"""The one door to the machine: programs, the xtables lock, namespaces, links and routes.

Knows nothing of rules or documents.
"""
