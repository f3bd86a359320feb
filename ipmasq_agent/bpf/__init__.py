"""bpf(2) by hand: maps, programs and pins of the kernel, whoever made them and whatever for."""
