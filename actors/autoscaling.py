"""What Ray Serve's autoscaler is told: the number of generators that the session directory has decided on.

Runs in Serve's controller, several times a second: it looks up and waits for nothing.
"""

from typing import Any

# Of what replicas record (``GeneratorReplica.record_autoscaling_stats``): the number, and which decision it is of.
WANTED, DECISION = "generators", "decision"


def generators_wanted(context: Any) -> tuple[int, dict[str, Any]]:
    """The number of the newest decision that a running generator was told of; as before while none was told any.

    Not the newest record: a generator that hears from the directory a second later records the old number until then,
    and what is started for the one would be stopped for the other. ``context``: Serve's ``AutoscalingContext``.
    """
    raw = context.raw_metrics or {}
    told = [
        (series[-1].value, raw[WANTED][replica][-1].value)
        for replica, series in raw.get(DECISION, {}).items()
        if replica in context.running_replicas and series
    ]
    return (int(max(told)[1]) if told else context.target_num_replicas), {}
