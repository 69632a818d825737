"""Scenarios, drivers and reports of what the runtime and its kernels do in time."""
