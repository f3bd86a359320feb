"""One module for each data plane: its typed state, compile, interpret, plan, and its text.

A dialect knows no processes, sockets, files or clocks: it turns values into values.
"""
