"""Side-by-side measurement of every way to masquerade, on the user's own machine."""
