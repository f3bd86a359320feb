"""One pass, the loop around it, and what the agent says of itself.

Knows neither the names of backends nor the syntax of rules: it is handed a backend, a
source, and settings.
"""
