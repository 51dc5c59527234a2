"""The settings of placement and autoscaling. All numbers are our own design, tried in ``bench.cluster_sim``."""

from dataclasses import dataclass, field

from errors import ConfigError


@dataclass(frozen=True)
class Balance:
    """When a session moves to another generator.

    Args:
        move_s: what a move costs: how long the session stands still.
        horizon_s: for how long what a move gains is counted; load does not stay as it is for longer.
        gain: a move takes at least this share off the slower of its two generators.
        settle_s: a session that has moved stays that long.
        moves: most sessions on their way at once; 0 if sessions never move for the sake of balance.
    """

    move_s: float = 1.0
    horizon_s: float = 30.0
    gain: float = 0.08
    settle_s: float = 20.0
    moves: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.gain < 1:
            raise ConfigError(f"balance.gain is {self.gain}; expected a share between 0 and 1")
        if self.moves < 0:
            raise ConfigError(f"balance.moves is {self.moves}; expected 0 or more")
        for name in ("move_s", "horizon_s", "settle_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"balance.{name} is {getattr(self, name)}; expected more than 0 seconds")


@dataclass(frozen=True)
class Fleet:
    """How many generators there are.

    Args:
        busy: share of a chunk's media time that a step may take; with more there are more generators.
        calm: with one generator less, a step would still take no more than this share; then there is one less.
        full, empty: the same for the share of places that are taken.
        slack: share of a chunk's media time; chunks that come closer to their deadlines ask for one generator more,
            where steps take at least half of ``busy``.
        start_s: how long it takes until a generator that is asked for is there; load is looked ahead as far.
        out_s, in_s: between asking for generators twice, and between giving up generators twice.
        share: most of all generators that are given up at once; at least one.
    """

    busy: float = 0.8
    calm: float = 0.7
    full: float = 0.9
    empty: float = 0.75
    slack: float = 0.1
    start_s: float = 30.0
    out_s: float = 5.0
    in_s: float = 60.0
    share: float = 0.125

    def __post_init__(self) -> None:
        for low, high in (("calm", "busy"), ("empty", "full")):
            if not 0 < getattr(self, low) < getattr(self, high) <= 1:
                raise ConfigError(
                    f"fleet.{low} is {getattr(self, low)} and fleet.{high} {getattr(self, high)}; expected shares, the "
                    "first less than the second, or generators would come and go"
                )
        if not 0 < self.share <= 1 or not 0 <= self.slack < 1:
            raise ConfigError(f"fleet.share is {self.share}, fleet.slack {self.slack}; expected shares up to 1")
        for name in ("start_s", "out_s", "in_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"fleet.{name} is {getattr(self, name)}; expected 0 seconds or more")


@dataclass(frozen=True)
class Rules:
    """Placement and number of generators.

    Args:
        least, most: generators that there are in any case, and at most; the same number for as many as there are.
    """

    least: int = 1
    most: int = 1
    balance: Balance = field(default_factory=Balance)
    fleet: Fleet = field(default_factory=Fleet)

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ConfigError(f"generators: at least {self.least}, at most {self.most}; expected 1 or more, in order")
