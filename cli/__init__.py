"""The ``longtake`` command."""

from cli import fleet, generate, service, stream
from cli.common import app

__all__ = ["app", "fleet", "generate", "service", "stream"]
