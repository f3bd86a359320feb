"""A small cluster and the network around it, in network namespaces of this machine.

Two nodes with pods, and a company router behind them. Everything is made inside
namespaces of the lab's own: the machine's links, rules and sysctls are never touched. The
lab is handed the agent's command line and knows it only from outside: its document, its
HTTP answers, its rules' effect on packets.
"""
