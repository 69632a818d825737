"""The `runtime` command: one module per verb."""
