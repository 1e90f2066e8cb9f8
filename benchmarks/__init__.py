"""Benchmarks of the pipeline, each compared with a reference."""
