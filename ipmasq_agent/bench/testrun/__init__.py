"""How long our eBPF programs take for a packet, by BPF_PROG_TEST_RUN: no lab, and no traffic.

The programs are loaded by the data plane itself, and what they do is told from packets alone:
nothing here knows what their maps hold.
"""
