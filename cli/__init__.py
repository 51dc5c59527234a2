"""The ``longtake`` command."""

from cli import fleet, generate, planning, service, stream
from cli.common import app

__all__ = ["app", "fleet", "generate", "planning", "service", "stream"]
