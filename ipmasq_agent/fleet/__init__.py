"""All agents of a cluster, asked from one place: what they hold, and whether a document takes.

``cluster`` is the door; the other modules are pure. Nothing here runs on a node.
"""
