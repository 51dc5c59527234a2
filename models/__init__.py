"""The backbone (diffusers' LTX-2 transformer, unmodified), its attention processors, positions and sampler."""
