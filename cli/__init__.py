"""The ``longtake`` command."""

from cli.common import app

__all__ = ["app"]
