"""Netlink by hand: one core, and nf_tables, routes and links, conntrack over it."""
