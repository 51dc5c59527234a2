"""The journal in Redis: a snapshot and a stream per session, written by one script a line, all lines in one pipeline.

Every line is checked against the one before it where it is written: a Redis that came back empty or older than it was,
and a shard that another has replaced, are found before anything is acknowledged. What survives a loss of power is for
Redis' own configuration to say (``appendfsync``); with eviction (``maxmemory-policy``) other than ``noeviction`` it may
drop books, which are then written anew.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cache.journal import Journal, JournalStatistics, Kind, Line, Replay, checksum, taken_up, wholly_again
from errors import JournalDown

CALL_S, PAUSE_S, AT_ONCE = 1.0, 0.25, 64
# KEYS: writer, sessions, snapshot, stream. ARGV: token, session, kind, number, digest, data.
# What may fail for want of memory comes first, so that a script which fails has changed nothing.
# The last number of a session is that of its stream's newest line, or of its snapshot.
LAST = """
local last = redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', 1)
local number = last[1] and tonumber(string.match(last[1][1], '^%d+')) or tonumber(redis.call('HGET', KEYS[3], 'number'))
"""
WRITE = (
    "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'foreign' end"
    + LAST
    + """
if ARGV[3] == 'more' then
  if number ~= tonumber(ARGV[4]) - 1 then return 'lost' end
  redis.call('XADD', KEYS[4], ARGV[4] .. '-0', 'digest', ARGV[5], 'data', ARGV[6])
  return 'written'
end
if ARGV[3] == 'whole' then
  redis.call('HSET', KEYS[3], 'number', ARGV[4], 'digest', ARGV[5], 'data', ARGV[6])
  redis.call('SADD', KEYS[2], ARGV[2])
else
  redis.call('DEL', KEYS[3])
  redis.call('SREM', KEYS[2], ARGV[2])
end
redis.call('DEL', KEYS[4])
return 'written'
"""
)
ASK = LAST + "return number or -1"


class RedisJournal(Journal):
    """Lines of one shard under ``name`` in the Redis at ``url``. Not for several threads.

    A call that fails is not made again for ``PAUSE_S``, so that a Redis which does not answer keeps nobody long.
    """

    def __init__(self, url: str, name: str, clock: Callable[[], float]) -> None:
        """Raises ``ValueError`` if ``url`` is none of Redis'; connects when it is used."""
        waits: dict[str, Any] = {"socket_timeout": CALL_S, "socket_connect_timeout": CALL_S}
        self._redis = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **waits)
        self._write = self._ask = ""  # digests of the scripts that Redis has
        self._prefix = f"{{{name}}}"  # braces: one slot of a Redis cluster has all keys of a shard
        self.clock, self._token = clock, secrets.token_hex(16)
        self._numbers: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._wanting: set[str] = set()
        self._unsure, self._try_at = True, float("-inf")
        self._appends = self._failures = self._damaged = 0
        self._down = "not read yet"

    def replay(self) -> Replay:
        with self._or_down():
            self._load()
            self._redis.set(self._key("writer"), self._token)  # from here on nobody else writes
            names = sorted(map(_text, self._redis.smembers(self._key("sessions"))))
            self._numbers, self._sizes = {}, {}
            sessions: dict[str, list[bytes]] = {}
            told = []
            for some in _batches(names):
                for session, lines in zip(some, self._read(some), strict=True):
                    if lines is None:
                        told.append(f"redis: lines of {session!r} are damaged or missing: it is not taken up")
                        self._wanting.add(session)
                    else:
                        sessions[session] = lines
            self._unsure = False
        self._damaged += len(told)
        self._down = ""
        return Replay(sessions, tuple(told))

    def ready(self) -> frozenset[str]:
        if self._unsure:
            with self._or_down():
                self._verify()
            self._unsure = False
        return frozenset(self._wanting)

    def append(self, lines: Sequence[Line]) -> None:
        wholly_again(lines, self._wanting)
        try:
            with self._or_down():
                self._append(lines)
        except JournalDown:
            self._wanting.update(line.session for line in lines)
            raise
        self._wanting.difference_update(line.session for line in lines)
        self._appends, self._down = self._appends + 1, ""

    def tend(self) -> None:
        if self._down:
            with suppress(JournalDown):
                with self._or_down():
                    self._redis.ping()
                self._down = ""

    def statistics(self) -> JournalStatistics:
        held = sum(self._sizes.values())
        counts = {"appends": self._appends, "failures": self._failures, "damaged": self._damaged, "down": self._down}
        return JournalStatistics(len(self._numbers), held, held, len(self._wanting), **counts)  # type: ignore[arg-type]

    def close(self) -> None:
        self._redis.close()

    def _load(self) -> None:
        self._write, self._ask = (str(self._redis.script_load(script)) for script in (WRITE, ASK))

    def _append(self, lines: Sequence[Line]) -> None:
        numbers = dict[str, int]()
        with self._redis.pipeline(transaction=False) as pipeline:
            for line in lines:
                before = numbers.get(line.session, self._numbers.get(line.session, -1))
                number = numbers[line.session] = before + 1
                digest = checksum(line.session, line.kind.name, number, line.data)
                arguments: list[Any] = [self._token, line.session, line.kind.name.lower(), number, digest, line.data]
                pipeline.evalsha(self._write, 4, *self._keys(line.session), *arguments)
            answers = [_text(answer) for answer in pipeline.execute()]
        if "foreign" in answers:
            self._unsure = True
            raise JournalDown("another shard has the journal, or redis lost it; nothing was acknowledged")
        if "lost" in answers:
            self._unsure = True
            raise JournalDown("redis lost lines that it had; nothing was acknowledged, and books are written anew")
        for line in lines:
            self._numbers[line.session] = numbers[line.session]
            if line.kind is Kind.GONE:
                self._numbers.pop(line.session)
                self._sizes.pop(line.session, None)
            else:
                before = self._sizes.get(line.session, 0) if line.kind is Kind.MORE else 0
                self._sizes[line.session] = before + len(line.data)

    def _verify(self) -> None:
        """Which sessions Redis does not have as they were acknowledged: it may have come back empty, or older."""
        self._load()
        writer = self._redis.get(self._key("writer"))
        if writer is None:
            self._redis.set(self._key("writer"), self._token, nx=True)
            writer = self._redis.get(self._key("writer"))
        if writer != self._token.encode():
            raise JournalDown("another shard has taken this journal over; this one acknowledges nothing more")
        for some in _batches(self._numbers):
            with self._redis.pipeline(transaction=False) as pipeline:
                for session in some:
                    pipeline.evalsha(self._ask, 4, *self._keys(session))
                answers = pipeline.execute()
            self._wanting.update(s for s, last in zip(some, answers, strict=True) if last != self._numbers[s])

    def _read(self, sessions: Sequence[str]) -> Iterator[list[bytes] | None]:
        """Lines of each session, ``None`` if they are not what was written."""
        with self._redis.pipeline(transaction=True) as pipeline:
            for session in sessions:
                _, _, snapshot, stream = self._keys(session)
                pipeline.hgetall(snapshot)
                pipeline.xrange(stream)
            answers = iter(pipeline.execute())
        for session, snapshot, stream in zip(sessions, answers, answers, strict=True):
            yield self._checked(session, snapshot, stream)

    def _checked(self, session: str, snapshot: dict[bytes, bytes], stream: list[Any]) -> list[bytes] | None:
        found = [(Kind.WHOLE, snapshot.get(b"number", b""), snapshot)] if snapshot else []
        found += [(Kind.MORE, identity.partition(b"-")[0], fields) for identity, fields in stream]
        lines = []
        for kind, number, fields in found:
            if not number.isdigit() or {b"digest", b"data"} - set(fields):
                return None
            data = fields[b"data"]
            if fields[b"digest"] != b"%d" % checksum(session, kind.name, int(number), data):
                return None
            lines.append((session, kind, int(number), data))
        chain = taken_up(lines).get(session)
        if chain is None or chain.broken or chain.lines is None:
            return None
        self._numbers[session] = chain.last
        self._sizes[session] = sum(map(len, chain.lines))
        return chain.lines

    def _key(self, what: str) -> str:
        return f"longtake:{self._prefix}:{what}"

    def _keys(self, session: str) -> list[str]:
        return [self._key(what) for what in ("writer", "sessions", f"snapshot:{session}", f"stream:{session}")]

    @contextmanager
    def _or_down(self) -> Iterator[None]:
        """An error of Redis is a ``JournalDown`` (without its address, which may hold a password)."""
        if self.clock() < self._try_at:
            raise JournalDown(f"the journal cannot be read or written now; {self._down}")
        try:
            yield
        except redis.RedisError as error:
            self._failures, self._unsure, self._try_at = self._failures + 1, True, self.clock() + PAUSE_S
            self._down = f"redis: {type(error).__name__}"
            raise JournalDown(f"the journal cannot be read or written now; {self._down}") from None
        except JournalDown as error:
            self._failures, self._down = self._failures + 1, str(error)
            raise


def _text(data: bytes | str) -> str:
    return data.decode() if isinstance(data, bytes) else data


def _batches(names: Sequence[str] | dict[str, int]) -> Iterator[list[str]]:
    left = iter(names)
    while some := list(islice(left, AT_ONCE)):
        yield some
