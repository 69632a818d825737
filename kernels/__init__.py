"""Triton kernels, one op a file; reference.py holds the same ops in plain torch."""
