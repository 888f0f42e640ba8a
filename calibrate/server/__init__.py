"""Measuring a server from outside: load, streamed tokens, metrics, other benchmarks' results."""
