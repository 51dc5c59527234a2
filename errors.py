"""Every error that Longtake raises on purpose.

LongtakeError
├── ConfigError            a setting is wrong; nothing was started
│   ├── ScriptError        a script that cannot be played
│   ├── GeometryError      the chunk does not divide into whole frames, latents or patches
│   └── BudgetError        a budget cannot hold what must always be kept
├── CheckpointError        the weights are not of a family that can be served
├── MediaError             frames, sound or a file that cannot be encoded, written or read
├── SnapshotError          bytes that cannot be resumed
│   ├── SnapshotCorrupt    damaged, truncated, or no snapshot at all
│   └── SnapshotMismatch   whole, but of another model, version or cache configuration
├── StreamError            a call that this stream cannot answer in its present state
│   ├── UnknownScene       a return to a scene that the stream does not remember
│   ├── SceneExists        a cut to a name that is taken
│   ├── StreamFailed       what had to follow a committed chunk could not be done
│   └── StreamClosed       the stream was closed or paused away
├── ServiceError           a request that the service cannot answer
│   ├── UnknownSession     no session of this name, or not of this key
│   ├── SessionOver        the session has finished, failed or was stopped
│   ├── NoCapacity         every place is taken; try again after ``retry_after_s``
│   ├── BadMessage         a message that is malformed, too long, or says what cannot be
│   ├── NotAllowed         the key is missing or wrong
│   ├── SessionMoved       its generator has gone or given it away; connect again
│   ├── FencedOff          another generator has taken this session over
│   └── JournalDown        the ledger's journal cannot be read or written now; nothing was acknowledged
└── CacheError             the cache refuses, or found itself inconsistent
    ├── PoolExhausted      no memory slots left for what was asked; nothing was changed
    ├── TransactionError   begin, commit and abort out of order
    ├── RecordLost         the restore store no longer has the chunk
    │   ├── RecordCorrupt  a record that is damaged or cut off; it is not used
    │   ├── RecordForeign  a whole record of another session, chunk, generation or model; it is not used
    │   └── TransferFailed the bytes did not come over; nothing of them is used
    │       ├── SlotRecycled   their memory was given up or used for something else by then
    │       ├── PeerGone       the process at the other end has gone
    │       └── TransferPending it was given up and may still write; its memory is not to be used yet
    └── IntegrityError     an invariant does not hold: a bug, never the caller's fault

Each class has a stable ``code`` for callers that cannot catch Python classes.
"""


class LongtakeError(Exception):
    """Base of all errors raised on purpose; ``code`` is stable across releases."""

    code = "longtake"


class ConfigError(LongtakeError):
    """A setting is wrong; the message names it, its value and what was expected."""

    code = "config"


class ScriptError(ConfigError):
    """A script that cannot be played; the message names the scene, what it says and what was expected."""

    code = "script"


class GeometryError(ConfigError):
    """The chunk does not divide into whole latent frames, audio latents or patches."""

    code = "geometry"


class BudgetError(ConfigError):
    """A budget cannot hold what must always be kept, or exceeds the trained range."""

    code = "budget"


class CheckpointError(LongtakeError):
    """The weights are missing, damaged or of another family."""

    code = "checkpoint"


class MediaError(LongtakeError):
    """Frames, sound or a file that cannot be encoded, written or read; what was written before still plays."""

    code = "media"


class SnapshotError(LongtakeError):
    """Bytes that cannot be resumed."""

    code = "snapshot"


class SnapshotCorrupt(SnapshotError):
    """Damaged or truncated bytes, or bytes that never were a snapshot."""

    code = "snapshot_corrupt"


class SnapshotMismatch(SnapshotError):
    """A whole snapshot, but of another model, format version or cache configuration."""

    code = "snapshot_mismatch"


class StreamError(LongtakeError):
    """A call that this stream cannot answer in its present state."""

    code = "stream"


class UnknownScene(StreamError):
    """A return to a scene that the stream does not remember."""

    code = "unknown_scene"


class SceneExists(StreamError):
    """A cut to a name that is already taken."""

    code = "scene_exists"


class StreamClosed(StreamError):
    """The stream was closed; its memory is gone."""

    code = "stream_closed"


class StreamFailed(StreamError):
    """What had to follow a committed chunk could not be done; the stream cannot go on from its memory."""

    code = "stream_failed"


class ServiceError(LongtakeError):
    """A request that the service cannot answer."""

    code = "service"


class UnknownSession(ServiceError):
    """There is no session of this name, or it belongs to another key."""

    code = "unknown_session"


class SessionOver(ServiceError):
    """The session has finished, failed or was stopped; it takes no more directions."""

    code = "session_over"


class NoCapacity(ServiceError):
    """Every place is taken; nothing was changed. ``retry_after_s``: when it makes sense to ask again."""

    code = "no_capacity"
    retry_after_s = 5.0


class BadMessage(ServiceError):
    """A message that is malformed, too long, or says what cannot be; the session is as before."""

    code = "bad_message"


class NotAllowed(ServiceError):
    """The key is missing or wrong."""

    code = "not_allowed"


class SessionMoved(ServiceError):
    """The generator has gone, or has given the session away; whoever asks again finds it elsewhere."""

    code = "session_moved"


class FencedOff(ServiceError):
    """Another generator has taken this session over; whoever is told so must stop writing."""

    code = "fenced_off"


class JournalDown(ServiceError):
    """The ledger's journal cannot be read or written now; nothing was acknowledged, and asking again is right."""

    code = "journal_down"


class CacheError(LongtakeError):
    """The cache refuses an operation or found itself inconsistent."""

    code = "cache"


class PoolExhausted(CacheError):
    """No memory slots left for what was asked; nothing was changed."""

    code = "pool_exhausted"


class TransactionError(CacheError):
    """begin, commit and abort were called out of order."""

    code = "transaction"


class RecordLost(CacheError):
    """The restore store no longer has the chunk that was asked for."""

    code = "record_lost"


class RecordCorrupt(RecordLost):
    """A record of the restore store is damaged or cut off; it is not used."""

    code = "record_corrupt"


class RecordForeign(RecordLost):
    """A whole record of another session, chunk, generation or model; it is not used."""

    code = "record_foreign"


class TransferFailed(RecordLost):
    """Bytes that did not come over from or to another process; nothing of them is used."""

    code = "transfer_failed"


class SlotRecycled(TransferFailed):
    """Memory that was to be read or written was given up or used for something else by then; it was not touched."""

    code = "slot_recycled"


class PeerGone(TransferFailed):
    """The process at the other end of a transfer has gone."""

    code = "peer_gone"


class TransferPending(TransferFailed):
    """A transfer that was given up and may still write where it was to: that memory is not to be used again yet."""

    code = "transfer_pending"


class IntegrityError(CacheError):
    """An invariant does not hold: a bug in Longtake, never the caller's fault."""

    code = "integrity"
