"""A typed client of the service, over HTTP and WebSocket."""

from client.api import Client, Message
from client.watch import Watch

__all__ = ["Client", "Message", "Watch"]
