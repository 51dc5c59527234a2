"""Figures that somebody measured, in place of data sheets and assumptions: what ``bench.capacity`` leaves behind."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from errors import ConfigError
from sizing.chunk_time import COMMIT
from sizing.figures import Figure, measured
from sizing.question import Question, Steps

HOW = "python -m bench.capacity --out measured.json"
RATES = (
    "memory_bytes", "memory_bytes_s", "link_bytes_s", "peer_bytes_s", "host_bytes", "disk_bytes", "disk_read_bytes_s",
    "disk_write_bytes_s", "price_hour",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What one file says.

    Args:
        gpu: the machine it was measured on; of another, it says nothing. Empty for what is any machine's.
        rates: by field of ``Machine``; matrix: operations a second by type.
        model: whose chunks were timed, if any; ``operations`` of one chunk, or ``None`` for those of the model as it
            ships; ``step_s``: seconds of a step by the sessions in it, decoding and encoding included.
    """

    origin: str
    gpu: str
    rates: Mapping[str, Figure]
    matrix: Mapping[str, Figure]
    model: str = ""
    operations: float | None = None
    step_s: Mapping[int, float] | None = None

    def applied(self, question: Question, shipped: Question) -> Question:
        """``question`` with what was measured in the place of what was not.

        ``shipped``: of the same model by the settings that it ships with, where the file does not say what was run.

        Raises:
            ConfigError: it was measured on another machine, or times chunks of another model and nothing else.
        """
        machine = question.machine
        if self.gpu not in ("", machine.name):
            raise ConfigError(f"{self.origin} was measured on {self.gpu!r}; expected a file of {machine.name!r}: {HOW}")
        rates: dict[str, Any] = dict(self.rates)
        if self.matrix:
            rates["matrix_ops_s"] = {**machine.matrix_ops_s, **self.matrix}
        changed = replace(question, machine=replace(machine, **rates))
        if self.step_s is None or self.model != question.model.name:
            if self.step_s is not None and not rates:
                raise ConfigError(
                    f"{self.origin} times chunks of {self.model!r}, not of {question.model.name!r}; {HOW}"
                )
            return changed
        operations = self.operations
        if operations is None:
            operations = (shipped.keeping.passes + COMMIT) * shipped.operations()
        return replace(changed, steps=Steps(self.step_s, operations, self.origin))


def parse_measured(plain: Any, origin: str) -> Measured:
    """The figures of a file of ``bench.capacity``, or of what other benchmarks leave.

    ``bench.serve`` times the model that ships on a CPU, ``bench.transfer`` the way from a CPU's generator to the store
    and back, and ``bench.restore`` a store's disk, whatever the generators run on.

    Raises:
        ConfigError: it is neither, or a figure is none.
    """
    try:
        name, figures, made = plain["name"], plain["figures"], plain["configuration"]
        reader = {"capacity": _capacity, "serve": _serve, "restore": _restore, "transfer": _transfer}.get(name)
        if reader is not None:
            return reader(figures, made, origin)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(f"{origin} is no measurement: {error!r}; expected what {HOW} leaves behind") from None
    raise ConfigError(f"{origin} is of the benchmark {name!r}; expected capacity, serve, restore or transfer: {HOW}")


def _capacity(figures: Any, made: Any, origin: str) -> Measured:
    unknown = set(figures) - {*RATES, "matrix_ops_s", "step_s"}
    if unknown:
        raise ConfigError(
            f"{origin} has {', '.join(sorted(unknown))}; expected {', '.join(RATES)}, matrix_ops_s, step_s"
        )
    rates = {field: measured(_positive(figures[field], field, origin), origin) for field in RATES if field in figures}
    matrix = {
        t: measured(_positive(v, f"matrix_ops_s.{t}", origin), origin)
        for t, v in figures.get("matrix_ops_s", {}).items()
    }
    steps = {int(n): _positive(s, f"step_s.{n}", origin) for n, s in figures.get("step_s", {}).items()}
    if not steps:
        return Measured(origin, str(made["gpu"]), rates, matrix)
    operations = _positive(made["chunk_operations"], "chunk_operations", origin)
    return Measured(origin, str(made["gpu"]), rates, matrix, str(made["model"]), operations, steps)


def _serve(figures: Any, made: Any, origin: str) -> Measured:
    """Chunks a second of eight sessions at the most, one by one and in one batch."""
    crowd = min(8, max(made["sessions"]))
    seconds = {}
    for batch, rates in figures["throughput"].items():
        ordered = sorted(_positive(rate, "throughput", origin) for rate in rates)
        together = min(int(batch), crowd)
        seconds[together] = together / ordered[len(ordered) // 2]
    return Measured(origin, "cpu", {}, {}, "toy", None, seconds)


def _restore(figures: Any, made: Any, origin: str) -> Measured:
    """GB a second of the largest payloads, as the store itself reads and writes them."""
    largest = figures[f"{max(made['MiB'])} MiB"]
    names = {"disk_read_bytes_s": "get cold (disk)", "disk_write_bytes_s": "write (disk)"}
    return Measured(origin, "", {f: _gigabytes(largest[name], name, origin) for f, name in names.items()}, {})


def _transfer(figures: Any, made: Any, origin: str) -> Measured:
    """GB a second of the largest payloads between two of Ray's processes by shared memory, the slower way."""
    name = f"shared, ray {max(made['sizes MiB'])} MiB"
    slower = min(figures[name][way] for way in ("put", "restore"))
    return Measured(origin, "cpu", {"link_bytes_s": _gigabytes(slower, name, origin)}, {})


def _gigabytes(value: Any, name: str, origin: str) -> Figure:
    return measured(1e9 * _positive(value, name, origin), origin)


def _positive(value: Any, name: str, origin: str) -> float:
    found = float(value)
    if not 0.0 < found < float("inf"):
        raise ConfigError(f"{name} of {origin} is {value!r}; expected more than 0")
    return found
