"""Encoding of published chunks for viewers: continuous timestamps, no gap and no click."""
