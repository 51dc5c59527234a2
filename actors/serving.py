"""Running the application in the foreground."""

import signal
import threading
from collections.abc import Callable

import ray
from ray import serve
from ray.serve import Application


def forever(application: Application, name: str, host: str, port: int, ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM, then shut down what was started here."""
    try:
        ray.init("auto", log_to_driver=False)
    except ConnectionError:
        ray.init(include_dashboard=False, log_to_driver=False)
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(application, name=name)
        ready()
        ended.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
