"""The ``longtake`` command."""

from cli import generate, stream
from cli.common import app

__all__ = ["app", "generate", "stream"]
