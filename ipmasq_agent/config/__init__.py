"""The ConfigMap document: bytes in, entries with their origin or a ``ConfigError`` out.

Knows neither files nor Kubernetes nor rules.
"""
