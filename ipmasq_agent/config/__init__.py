"""The ConfigMap document: bytes in, a ``Config`` or a ``ConfigError`` out; with facts, a policy.

Knows neither files nor Kubernetes nor any data plane.
"""
