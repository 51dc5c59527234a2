"""Benchmarks: each is a command, prints what it ran on, and says beside every figure whether its goal is met."""
