"""Whether what stands beside others is still needed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Need:
    """How long ago somebody was seen who needs it; in the beginning somebody is about to come.

    An actor of Ray keeps its node busy, resources or not, so that no autoscaler takes the node away.
    """

    clock: Callable[[], float] = time.monotonic
    _seen: float = field(init=False)

    def __post_init__(self) -> None:
        self.seen()

    def seen(self) -> None:
        """Somebody needs it now."""
        self._seen = self.clock()

    def there(self, patience_s: float | None) -> bool:
        """Whether it is still needed, ``patience_s`` after that; always, if there is no end to patience."""
        return patience_s is None or self.clock() - self._seen <= patience_s
