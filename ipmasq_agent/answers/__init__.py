"""Questions asked of policies and states: what would change, what is in force, and why.

Knows neither where the states came from nor how the answers are printed.
"""
