"""Reads what stands at the postrouting hook beside us, in the tables of every data plane."""
