"""Codecs whose bytes say what they are: each matrix on the first rung of a ladder that is good enough for it.

``head | codes of the rungs | lengths | matrices``. The head carries a hash of type and shape, so that bytes of another
tensor of the same size are refused.
"""

import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
import xxhash

from cache.codec import Buffer, Bytes, Exact, Packing, in_host_memory, nbytes, readable, writable
from cache.codecs.measure import worst_channel
from cache.codecs.numbers import Float8, Integers
from cache.codecs.planes import Planes
from cache.codecs.quantised import Quantised
from cache.codecs.rungs import KEYS, VALUES, Raw, Rung, Side
from errors import ConfigError, RecordCorrupt

MAGIC, VERSION = b"LTKV", 1
_HEAD = struct.Struct("<4sHHQ")  # magic, version, group, hash of type and shape
GROUPS = range(2, 1 << 16)
_ENTRY = 9  # bytes of the tables per matrix: one of a code, eight of a length
RAW = Raw()
READERS: Mapping[int, Rung] = {
    rung.code: rung for rung in (RAW, Planes(), Quantised(Integers(8)), Quantised(Integers(4)), Quantised(Float8()))
}


@dataclass(frozen=True)
class CodecStatistics:
    """What a codec was given and made since it was made.

    Args:
        rungs: matrices by the rung that they ended on.
        beyond_budget: times that a rung was tried and a channel was beyond the budget.
        worst_error: largest error of a channel that was measured and accepted.
    """

    tensors: int
    nominal_bytes: int
    held_bytes: int
    rungs: Mapping[str, int]
    beyond_budget: int
    worst_error: float


@dataclass
class Ladder:
    """Packs the keys and the values of each layer on the first of ``rungs`` that takes them; raw if none does.

    Args:
        budget: largest error of any channel (``cache.codecs.measure``) that a lossy rung may make, measured on what
            comes back; without one, a lossy rung takes all that it can represent.
        group: elements that share a scale, for the lossy rungs.

    Decoding takes whatever any ladder made, also one of other rungs. May be used by several threads.
    """

    name: str
    rungs: tuple[Rung, ...]
    budget: float | None = None
    group: int = 64
    _rungs_used: Counter[str] = field(init=False, default_factory=Counter)
    _counts: Counter[str] = field(init=False, default_factory=Counter)
    _worst: float = field(init=False, default=0.0)
    _lock: Lock = field(init=False, default_factory=Lock)

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise ConfigError(f"the error budget of {self.name} is {self.budget}; expected a share of 1 above 0")
        if self.group not in GROUPS:
            raise ConfigError(f"the group of {self.name} is {self.group}; expected {GROUPS[0]} to {GROUPS[-1]}")

    @property
    def lossless(self) -> bool:
        """Whether every bit comes back."""
        return all(rung.lossless for rung in self.rungs)

    def bound(self, dtype: torch.dtype, shape: Sequence[int]) -> int:
        return _HEAD.size + _ENTRY * _count(shape) + math.prod(shape) * dtype.itemsize

    def encode(self, tensor: torch.Tensor) -> bytes:
        buffer = np.empty(self.bound(tensor.dtype, tensor.shape), np.uint8)
        return buffer[: self.encode_into(tensor, buffer.data)].tobytes()

    def encode_into(self, tensor: torch.Tensor, buffer: Buffer) -> int:
        if not self.lossless and not _is_key_values(tensor.shape):
            raise ValueError(
                f"a tensor for {self.name} has the shape {list(tensor.shape)}; expected [layers, 2, tokens, width]"
            )
        room = writable(buffer, self.bound(tensor.dtype, tensor.shape))
        count = _count(tensor.shape)
        codes, lengths = np.zeros(count, np.uint8), np.zeros(count, "<u8")
        at, used, trial = _HEAD.size + _ENTRY * count, Counter[str](), _Trial(self.budget, self.group)
        for i, (side, matrix) in enumerate(_matrices(in_host_memory(tensor))):
            rung, length = self._climb(matrix, side, room[at : at + matrix.nbytes], trial)
            codes[i], lengths[i] = rung.code, length
            used[rung.name] += 1
            at += length
        head = _HEAD.pack(MAGIC, VERSION, self.group, _digest(tensor.dtype, tensor.shape))
        room[: _HEAD.size + _ENTRY * count] = readable(head + codes.tobytes() + lengths.tobytes())
        self._book(tensor.nbytes, at, used, trial)
        return at

    def decode(self, data: Buffer, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
        _tables(data, dtype, shape)
        out = torch.empty(tuple(shape), dtype=dtype)
        self.decode_into(data, out)
        return out

    def decode_into(self, data: Buffer, out: torch.Tensor) -> None:
        view = readable(data)
        group, entries = _tables(data, out.dtype, out.shape)
        at = _HEAD.size + _ENTRY * len(entries)
        for (side, matrix), (rung, length) in zip(_matrices(out), entries, strict=True):
            rung.read(view[at : at + length], side, matrix, group)
            at += length

    def statistics(self) -> CodecStatistics:
        """A frozen summary."""
        with self._lock:
            counts = self._counts
            return CodecStatistics(
                counts["tensors"],
                counts["nominal"],
                counts["held"],
                dict(self._rungs_used),
                counts["beyond"],
                self._worst,
            )

    def _climb(self, matrix: torch.Tensor, side: Side, room: Bytes, trial: "_Trial") -> tuple[Rung, int]:
        for rung in self.rungs:
            length = rung.write(matrix, side, room, self.group)
            if length is not None and (rung.lossless or trial.accepts(rung, matrix, side, room[:length])):
                return rung, length
        return RAW, RAW.write(matrix, side, room, self.group)

    def _book(self, nominal: int, held: int, used: Counter[str], trial: "_Trial") -> None:
        with self._lock:
            self._counts.update(tensors=1, nominal=nominal, held=held, beyond=trial.beyond)
            self._rungs_used.update(used)
            self._worst = max(self._worst, trial.worst)


@dataclass
class _Trial:
    """The budget for one tensor, with room to read back into, used again for every matrix."""

    budget: float | None
    group: int
    beyond: int = 0
    worst: float = 0.0
    read_back: torch.Tensor | None = None

    def accepts(self, rung: Rung, matrix: torch.Tensor, side: Side, data: Bytes) -> bool:
        if self.budget is None:
            return True
        if self.read_back is None:
            self.read_back = torch.empty(matrix.shape, dtype=matrix.dtype)
        rung.read(data, side, self.read_back, self.group)
        error = worst_channel(matrix, self.read_back)
        if not error <= self.budget:
            self.beyond += 1
            return False
        self.worst = max(self.worst, error)
        return True


def packing(data: Buffer, dtype: torch.dtype, shape: Sequence[int]) -> Packing:
    """How a tensor of this type and shape was packed in ``data``, by ``Exact`` or any ladder.

    Raises:
        RecordCorrupt: the bytes are not of such a tensor.
    """
    nominal, held = nbytes(dtype, shape), len(readable(data))
    try:
        rungs = Counter(rung.name for rung, _ in _tables(data, dtype, shape)[1])
    except RecordCorrupt:
        if held != nominal:
            raise
        rungs = Counter({Exact().name: _count(shape)})
    return Packing(math.prod(shape), nominal, held, dict(rungs))


def _tables(data: Buffer, dtype: torch.dtype, shape: Sequence[int]) -> tuple[int, list[tuple[Rung, int]]]:
    """Group, and rung and bytes of every matrix; every number in them is checked before it is used."""
    nbytes(dtype, shape)
    view = readable(data)
    count = _count(shape)
    if len(view) < _HEAD.size + _ENTRY * count:
        raise RecordCorrupt(f"a packed tensor has {len(view):,} bytes; expected tables for {count:,} matrices first")
    magic, version, group, digest = _HEAD.unpack_from(view.data)
    if magic != MAGIC or version != VERSION or group not in GROUPS:
        raise RecordCorrupt(f"no packed tensor of version {VERSION}: it begins with {bytes(view[: _HEAD.size]).hex()}")
    if digest != _digest(dtype, shape):
        raise RecordCorrupt(f"the packed tensor is another than {list(shape)} of {dtype}")
    codes = view[_HEAD.size : _HEAD.size + count].tolist()
    lengths = np.frombuffer(view[_HEAD.size + count : _HEAD.size + _ENTRY * count].tobytes(), "<u8").tolist()
    for code in codes:
        if code not in READERS:
            raise RecordCorrupt(f"a matrix is packed by code {code}; expected one of {sorted(READERS)}")
        if not READERS[code].lossless and not _is_key_values(shape):
            raise RecordCorrupt(f"a lossy matrix in a tensor {list(shape)}; expected [layers, 2, tokens, width]")
    found, expected = len(view), _HEAD.size + _ENTRY * count + sum(lengths)
    if found != expected:
        raise RecordCorrupt(f"a packed tensor has {found:,} bytes; its tables say {expected:,}")
    return group, [(READERS[code], length) for code, length in zip(codes, lengths, strict=True)]


def _is_key_values(shape: Sequence[int]) -> bool:
    return len(shape) == 4 and shape[1] == 2


def _count(shape: Sequence[int]) -> int:
    """Matrices of a tensor; what is not of keys and values is one."""
    return 2 * shape[0] if _is_key_values(shape) else 1


def _matrices(tensor: torch.Tensor) -> Iterator[tuple[Side, torch.Tensor]]:
    if not _is_key_values(tensor.shape):
        yield KEYS, tensor
        return
    for layer in tensor:
        yield KEYS, layer[0]
        yield VALUES, layer[1]


def _digest(dtype: torch.dtype, shape: Sequence[int]) -> int:
    return xxhash.xxh3_64_intdigest(f"{dtype} {list(shape)}".encode())
