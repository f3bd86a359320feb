"""Rules at the hooks of netfilter as typed values, whoever wrote them, and what they decide.

Pure: where a rule was read, and in which syntax it is written, is others' business.
"""
