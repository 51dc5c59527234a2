"""Decisions and books of the cache: which chunk is remembered, where, in which role, at which position."""
