"""One pass, the loop around it, and what the agent says of itself.

Knows neither the names of data planes nor the syntax of rules, but for the comments by which
``war.py`` tells who wrote them: it is handed planes, a source, and settings.
"""
