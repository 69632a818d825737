"""OpenAI-compatible HTTP: a server process that parses and streams, and an engine in a child of it."""
