"""The `runtime` command: one module per verb.

Each has `add_arguments(parser)`, which declares its flags, and `run(args)`, which does it and returns the exit code.
"""
