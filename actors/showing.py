"""The messages of a session to one of its viewers, in the order in which they are sent."""

from collections.abc import AsyncIterator
from typing import Any

from actors.live import OVER, Live, State, Watching
from actors.reel import Piece
from errors import SessionMoved


async def messages(live: Live, watching: Watching) -> AsyncIterator[dict[str, Any]]:
    """As many chunks as the viewer has credits for, and what becomes of the session; ends when it is over.

    Raises ``SessionMoved`` when another generator has it.
    """
    told, headed = live.state, False
    while True:
        watching.news.clear()
        if live.moved:
            raise SessionMoved(f"{live.id} is with another generator; connect again")
        for piece in live.take(watching):
            if live.header and not headed:
                headed = True
                yield {"type": "init", "data": live.header, "mime": live.mime}
            yield chunk_message(piece)
            if piece.last:
                yield {"type": "end", "state": State.FINISHED.value, "reason": "the take is over"}
                return
        if watching.dropped:
            yield {"type": "end", "state": "dropped", "reason": watching.dropped}
            return
        unseen = live.state is State.FINISHED and watching.viewer.sent + 1 < live.next_chunk
        if live.state in OVER and not unseen:
            yield {"type": "end", "state": live.state.value, "reason": live.reason}
            return
        if live.state is not told:
            told = live.state
            yield {"type": "state", "state": live.state.value, "reason": live.reason}
        await watching.news.wait()


def chunk_message(piece: Piece) -> dict[str, Any]:
    """A piece as it goes to a viewer."""
    return {
        "type": "chunk",
        "index": piece.index,
        "scene": piece.scene,
        "start": float(piece.start),
        "drift": round(piece.drift, 4),
        "key": piece.key,
        "data": piece.data,
    }
