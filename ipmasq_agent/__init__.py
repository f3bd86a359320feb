"""Which pod traffic leaves a node with the node's address, and which keeps the pod's own.

The package is a row of rooms that data walks through in one direction; see
``docs/architecture.md``. It never opens connections of its own but to the Kubernetes
API, and touches nothing in the kernel but the chain it owns and the jump to it.
"""

__version__ = "0.1.0"
