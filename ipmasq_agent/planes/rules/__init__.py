"""Rules at the hooks of netfilter as typed values, whoever wrote them, and what they decide.

Pure. Options are named as iptables names them, also those of native rules of nf_tables;
where a rule was read, and how, is others' business.
"""
