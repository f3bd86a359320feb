"""The oldest kernel that the eBPF programs are for, booted in an emulator: no KVM is needed.

``python -m tests.oldest [OBJECT]`` says what its verifier thinks of a compiled object, and
what that of this kernel does.
"""
