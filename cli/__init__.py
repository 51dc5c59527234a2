"""The ``longtake`` command."""

from cli import generate, service, stream
from cli.common import app

__all__ = ["app", "generate", "service", "stream"]
