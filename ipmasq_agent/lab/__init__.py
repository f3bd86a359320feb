"""Two small clusters and the network around them, in network namespaces of this machine.

Nodes with pods, a company router behind them, and a Kubernetes API that knows the nodes.
Everything is made inside namespaces of the lab's own: the machine's links, rules and sysctls
are never touched. The lab is handed the agent's command line and knows it only from outside:
its document, its HTTP answers, its rules' effect on packets. The benchmark uses its parts:
children that end with us, mounted documents, orders to programs, and interruptions.
"""
