"""Benchmarks that print a figure beside its bound; run as `python -m benchmarks.<name>` from the repository root."""
