"""What the tiers of the restore store are made of: contents, quotas, buffers, files, seals, and the tier on disk."""
