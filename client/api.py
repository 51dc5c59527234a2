"""Sessions over HTTP: begin, direct, inspect, list and stop them."""

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from client.problems import raised
from client.watch import Watch
from errors import ServiceError

Message = dict[str, Any]
TAKE, PIECE = "application/vnd.longtake.take", 1 << 18


class Client:
    """The API of one service; use it as an async context manager.

    Every call raises the ``LongtakeError`` that the service raised, and ``ServiceError`` if it cannot be reached.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", key: str = "", timeout_s: float = 60.0) -> None:
        self.url, self.key = url.rstrip("/"), key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def create(
        self,
        prompt: str = "",
        scenes: Sequence[Mapping[str, Any]] = (),
        subject: str = "",
        seed: int = 0,
        model: str = "",
        size: str = "",
    ) -> Message:
        """Begin a session with a prompt, or with the scenes of a script; the answer has its name as ``session``.

        ``model`` and ``size`` (as ``"128x128"``): what the service must have, where the caller minds.
        """
        wanted = {"prompt": prompt, "scenes": list(scenes), "subject": subject, "seed": seed}
        wanted |= {name: value for name, value in (("model", model), ("size", size)) if value}
        found: Message = await self._call("POST", "/v1/sessions", wanted)
        return found

    async def sessions(self) -> list[Message]:
        """The caller's sessions."""
        found: list[Message] = await self._call("GET", "/v1/sessions")
        return found

    async def inspect(self, session: str) -> Message:
        """What a session's cache holds and did."""
        found: Message = await self._call("GET", f"/v1/sessions/{session}")
        return found

    async def change_prompt(
        self, session: str, prompt: str, mode: Literal["keep", "recache", "cut"] = "keep", subject: str = ""
    ) -> Message:
        """Another prompt; the receipt says from which chunk."""
        return await self._control(session, do="prompt", prompt=prompt, mode=mode, subject=subject)

    async def cut(self, session: str, scene: str, prompt: str, keep_subject: bool = True, subject: str = "") -> Message:
        """Enter a new scene."""
        return await self._control(
            session, do="cut", scene=scene, prompt=prompt, keep_subject=keep_subject, subject=subject
        )

    async def return_to(self, session: str, scene: str) -> Message:
        """Return to a scene that the session remembers."""
        return await self._control(session, do="return", scene=scene)

    async def pause(self, session: str) -> Message:
        """Put a session away."""
        return await self._control(session, do="pause")

    async def resume(self, session: str) -> Message:
        """Go on with a session."""
        return await self._control(session, do="resume")

    async def fork(self, session: str, seed: int | None = None) -> Message:
        """A second session with the same past; the receipt has its name as ``child``."""
        return await self._control(session, do="fork", seed=seed)

    async def stop(self, session: str) -> Message:
        """End a session."""
        found: Message = await self._call("DELETE", f"/v1/sessions/{session}")
        return found

    async def generators(self) -> list[Message]:
        """Every generator: places, sessions, whether it is drained. As the next three for keys of ``limits.admins``."""
        found: list[Message] = await self._call("GET", "/v1/generators")
        return found

    async def drain(self, generator: str) -> Message:
        """Hand over all sessions of a generator, and place no more there; waits for as long as it takes."""
        answer = await self._answer("POST", f"/v1/generators/{generator}/drain", timeout=None)
        found: Message = answer.json()
        return found

    async def undrain(self, generator: str) -> Message:
        """Place sessions in a generator again."""
        found: Message = await self._call("DELETE", f"/v1/generators/{generator}/drain")
        return found

    async def move(self, session: str, to: str = "") -> Message:
        """Have another generator, perhaps ``to``, go on with a session; its viewers go on by themselves."""
        found: Message = await self._call("POST", f"/v1/sessions/{session}/move", {"to": to})
        return found

    async def export(self, session: str, path: Path) -> int:
        """Write a session to a file, whole or not at all; it goes on. Returns the file's bytes.

        Raises ``ServiceError`` too if the service broke off, and ``OSError`` if the file cannot be written.
        """
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with partial.open("xb") as file:
                async for piece in self._download(f"/v1/sessions/{session}/export"):
                    file.write(piece)
                size = file.tell()
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return size

    async def import_take(self, path: Path) -> Message:
        """Begin a session that goes on from a file as a fork of the session that was exported.

        Raises ``SnapshotError`` if it is no take of this service's model, and ``OSError`` if it cannot be read.
        """
        size = path.stat().st_size
        headers = {"Content-Type": TAKE, "Content-Length": str(size)}
        found: Message = (await self._answer("POST", "/v1/imports", content=_read(path), headers=headers)).json()
        return found

    async def thumbnail(self, session: str, scene: str) -> bytes:
        """A JPEG of a scene."""
        answer = await self._answer("GET", f"/v1/sessions/{session}/scenes/{scene}/thumbnail.jpg")
        return answer.content

    def watch(self, session: str, after: int | None = -1, credits: int = 8, fresh: bool = True) -> Watch:
        """The media of a session; see ``Watch``."""
        return Watch(self.url, self.key, session, after, credits, fresh)

    async def _control(self, session: str, **control: Any) -> Message:
        found: Message = await self._call("POST", f"/v1/sessions/{session}/control", control)
        return found

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        return (await self._answer(method, path, body)).json()

    async def _answer(self, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, json=body, **more)
        except httpx.HTTPError as error:
            raise ServiceError(f"{self.url} cannot be reached: {error!r}; is the service running?") from error
        return _granted(answer)

    async def _download(self, path: str) -> AsyncIterator[bytes]:
        try:
            async with self._http.stream("GET", path) as answer:
                if not answer.is_success:
                    await answer.aread()
                async for piece in _granted(answer).aiter_bytes():
                    yield piece
        except httpx.HTTPError as error:
            raise ServiceError(f"{self.url} broke off or cannot be reached: {error!r}") from error


def _granted(answer: httpx.Response) -> httpx.Response:
    """The answer, or the error that it speaks of."""
    if answer.is_success:
        return answer
    try:
        problem = answer.json()
    except ValueError:
        asked = f"{answer.request.method} {answer.request.url.path}"
        problem = {"detail": f"{asked} was answered with {answer.status_code}: {answer.text[:200]}"}
    raise raised(problem)


async def _read(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
