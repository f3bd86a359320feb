"""The data planes: each folder turns a policy into the state of one, and reads it back.

What several of them share is beside the folders and knows none of them; no folder knows
another one.
"""
