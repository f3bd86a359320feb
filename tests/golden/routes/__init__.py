"""What ``routes`` writes for routers whose parsers are not to be had, letter by letter.

After an intended change, write the files anew with ``python -m tests.golden.routes``.
"""
