"""Benchmarks: one table and one JSON file a part, with the machine they were taken on."""
