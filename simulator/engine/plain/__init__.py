"""The engine in plain Python, one step at a time: what the compiled loop must equal."""
