"""What callers may say, checked: requests over HTTP and messages over a WebSocket."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from actors.limits import Limits
from actors.order import Order
from actors.worker import Direction
from errors import BadMessage, ScriptError
from streams.director import Script, Shot

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Strict(BaseModel):
    """No unknown fields, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Scene(Strict):
    """One entry of a script: a new scene with a prompt, or a return to an earlier one."""

    duration: float | str = Field(description="seconds, or text such as '90s', '5m', '1h30m'")
    name: str = Field("", description="by default scene-1, scene-2 and so on")
    prompt: str = ""
    subject: str = Field("", description="what the segmenter keeps an eye on")
    return_to: str = Field("", description="name of the scene to return to")


class NewSession(Strict):
    """What a session is to be: a prompt without end, or a script of scenes."""

    prompt: str = ""
    scenes: list[Scene] = Field(default_factory=list)
    subject: str = ""
    seed: Seed = 0
    model: str = Field("", description="refused if the service has another")
    size: str = Field("", description="as 128x128, width first; refused if the service has another")

    def order(self, limits: Limits) -> Order:
        """Raises ``BadMessage`` or ``ScriptError`` if it cannot be played or is too long."""
        _bounded(limits, prompt=self.prompt, subject=self.subject, model=self.model, size=self.size)
        if bool(self.prompt.strip()) == bool(self.scenes):
            raise BadMessage("expected either a prompt that is not empty, or scenes")
        if not self.scenes:
            return Order(self.prompt, None, self.subject, self.seed, self.model, self.size)
        if len(self.scenes) > limits.scenes:
            raise ScriptError(f"the script has {len(self.scenes)} scenes; expected at most {limits.scenes}")
        for scene in self.scenes:
            _bounded(limits, prompt=scene.prompt, subject=scene.subject, name=scene.name)
        shots = tuple(Shot(s.duration, s.name, s.prompt, s.subject, s.return_to) for s in self.scenes)
        return Order("", Script(shots), self.subject, self.seed, self.model, self.size)


class ChangePrompt(Strict):
    """Another prompt from the next chunk on; ``mode``: what becomes of the memory of the old one."""

    do: Literal["prompt"]
    prompt: Annotated[str, Field(min_length=1)]
    mode: Literal["keep", "recache", "cut"] = "keep"
    subject: str = ""


class CutTo(Strict):
    """Enter a new scene."""

    do: Literal["cut"]
    scene: Annotated[str, Field(min_length=1)]
    prompt: Annotated[str, Field(min_length=1)]
    keep_subject: bool = True
    subject: str = ""


class GoBack(Strict):
    """Return to a scene that the session remembers."""

    do: Literal["return"]
    scene: Annotated[str, Field(min_length=1)]


class Simple(Strict):
    """Pause, resume or stop."""

    do: Literal["pause", "resume", "stop"]


class Fork(Strict):
    """A second session with the same past; with another seed it has another future."""

    do: Literal["fork"]
    seed: Seed | None = None


class Move(Strict):
    """Where a session is to go: to a generator, or wherever most places are free."""

    to: str = ""


Control = Annotated[ChangePrompt | CutTo | GoBack | Simple | Fork, Field(discriminator="do")]
CONTROL: TypeAdapter[Control] = TypeAdapter(Control)


class Acknowledgement(Strict):
    """What a viewer has and is willing to take: see ``actors.pace.Viewer``."""

    chunk: int
    credits: int
    buffered: float | None = None


def direction(control: ChangePrompt | CutTo | GoBack, limits: Limits) -> Direction:
    """Raises ``BadMessage`` if it is too long."""
    given = control.model_dump()
    _bounded(limits, **{name: value for name, value in given.items() if isinstance(value, str)})
    return Direction(**given)


def parsed(adapter: Any, plain: Any) -> Any:
    """``plain`` as ``adapter`` has it; raises ``BadMessage`` that names field, value and what was expected."""
    try:
        return adapter.validate_python(plain) if isinstance(adapter, TypeAdapter) else adapter.model_validate(plain)
    except ValidationError as error:
        raise BadMessage(explained(error.errors(include_url=False))) from None


def explained(errors: Any) -> str:
    """pydantic's errors in one line, at most three of them."""
    told = []
    for error in errors[:3]:
        where = ".".join(str(part) for part in error["loc"]) or "message"
        told.append(f"{where} is {str(error.get('input'))[:80]!r}: {error['msg']}")
    return "; ".join(told) + (f"; and {len(errors) - 3} more" if len(errors) > 3 else "")


def _bounded(limits: Limits, **texts: str) -> None:
    for name, text in texts.items():
        if len(text) > limits.prompt:
            raise BadMessage(f"{name} has {len(text):,} characters; expected at most {limits.prompt:,}")
