"""The one pure value that everything turns on: which packets are masqueraded, and how.

Knows neither documents nor any data plane's syntax, touches nothing outside itself, and
gives the same answer for the same values.
"""
