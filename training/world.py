"""The toy world: a coloured subject bounces in a room and sounds when it touches the floor. Closed form in time.

Every frame and every sample of every scene can be rendered at any time, so the truth is always known. The caption
tells subject, colour and room. What it does not tell (``Layout``: horizon, window, shades, a second object, timbre) is
drawn per scene instance, stays fixed while the scene lasts, and must be the same when the scene returns: that is what
memory is for.

Tones are multiples of 50 Hz and keep their phase on the media clock, so that equal sounds have equal latents wherever
they stand in the stream. Colours are RGB in [0, 1]; lengths are pixels of a 128 × 128 frame; times are seconds.
"""

import random
from dataclasses import dataclass
from fractions import Fraction

import torch

SIDE = 128
FPS = Fraction(25, 2)
SAMPLE_RATE = 16_000
CHUNK_FRAMES = 8
CHUNK_SECONDS = CHUNK_FRAMES / FPS
CHUNK_SAMPLES = int(CHUNK_SECONDS * SAMPLE_RATE)

SHAPES = {"ball": ("ball", "sphere"), "box": ("box", "cube"), "cone": ("cone", "pyramid"), "ring": ("ring", "hoop")}
COLOURS = {
    "red": (0.90, 0.14, 0.12),
    "green": (0.10, 0.66, 0.20),
    "blue": (0.12, 0.25, 0.90),
    "yellow": (0.98, 0.88, 0.10),
    "white": (0.97, 0.97, 0.97),
    "black": (0.07, 0.07, 0.07),
}
ROOMS = {
    "blue": ((0.42, 0.55, 0.75), (0.30, 0.36, 0.48)),
    "green": ((0.48, 0.66, 0.50), (0.32, 0.40, 0.30)),
    "pink": ((0.80, 0.58, 0.62), (0.48, 0.34, 0.36)),
    "yellow": ((0.84, 0.76, 0.48), (0.52, 0.42, 0.28)),
    "grey": ((0.62, 0.62, 0.62), (0.38, 0.38, 0.38)),
    "purple": ((0.60, 0.50, 0.74), (0.38, 0.30, 0.46)),
}
NOTE_HZ = {"ball": 600, "box": 400, "cone": 800, "ring": 200}
DRONE_HZ = {"blue": 150, "green": 200, "pink": 250, "yellow": 300, "grey": 350, "purple": 450}
TEMPLATES = (
    "a {colour} {shape} bouncing in a {room} room",
    "a {colour} {shape} bounces around in a room with {room} walls",
    "in a {room} room a {colour} {shape} is bouncing",
    "the {room} room, and a {colour} {shape} that hops about",
    "a {shape} bouncing in the {room} room, the {shape} is {colour}",
)
PROPS = ((0.34, 0.22, 0.14), (0.16, 0.36, 0.30), (0.62, 0.30, 0.20))
SKY, FRAME = (0.86, 0.94, 1.0), (0.95, 0.92, 0.86)
NOTE_LEVEL, ATTACK, DECAY = 0.30, 0.004, 0.10


@dataclass(frozen=True)
class Layout:
    """What no caption tells: fixed while a scene lasts, and the same when it returns."""

    horizon: float
    window: tuple[float, float, float, float]  # centre x, centre y, half width, half height
    wall_shade: float
    floor_shade: float
    prop_kind: int  # 0 crate, 1 globe, 2 fir
    prop_x: float
    prop_size: float
    prop_colour: int
    radius: float
    floor: float  # where the subject touches the ground
    drone_level: float
    undertone: float

    @classmethod
    def draw(cls, rng: random.Random) -> "Layout":
        """A layout at random."""
        window = (rng.uniform(26, 102), rng.uniform(18, 36), rng.uniform(10, 18), rng.uniform(8, 14))
        return cls(
            horizon=rng.uniform(72, 92),
            window=window,
            wall_shade=rng.uniform(0.82, 1.15),
            floor_shade=rng.uniform(0.80, 1.25),
            prop_kind=rng.randrange(3),
            prop_x=rng.uniform(14, 114),
            prop_size=rng.uniform(8, 13),
            prop_colour=rng.randrange(len(PROPS)),
            radius=rng.uniform(14, 18),
            floor=rng.uniform(108, 120),
            drone_level=rng.uniform(0.03, 0.08),
            undertone=rng.uniform(0.0, 0.5),
        )


@dataclass(frozen=True)
class Motion:
    """Elastic bounces on the floor and a steady walk between the walls."""

    period: float
    height: float
    phase: float
    speed: float
    start: float

    @classmethod
    def draw(cls, rng: random.Random) -> "Motion":
        """A motion at random."""
        return cls(
            period=rng.uniform(0.85, 1.3),
            height=rng.uniform(34, 60),
            phase=rng.random(),
            speed=rng.uniform(12, 36),
            start=rng.uniform(0, 200),
        )


@dataclass(frozen=True)
class Scene:
    """One scene instance: what the caption tells, what it does not, and how the subject moves."""

    shape: str
    colour: str
    room: str
    layout: Layout
    motion: Motion

    @classmethod
    def draw(cls, rng: random.Random) -> "Scene":
        """A scene at random."""
        words = (rng.choice(list(SHAPES)), rng.choice(list(COLOURS)), rng.choice(list(ROOMS)))
        return cls(*words, Layout.draw(rng), Motion.draw(rng))

    def caption(self, rng: random.Random) -> str:
        """One of the ways to say what is shown."""
        shape = rng.choice(SHAPES[self.shape])
        return rng.choice(TEMPLATES).format(colour=self.colour, shape=shape, room=self.room)

    def position(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Centre of the subject, x and y [times]."""
        motion, layout = self.motion, self.layout
        low, high = layout.radius + 2, SIDE - layout.radius - 2
        walked = torch.remainder(motion.start + motion.speed * times, 2 * (high - low))
        x = low + torch.minimum(walked, 2 * (high - low) - walked)
        phase = torch.remainder(times / motion.period + motion.phase, 1.0)
        return x, layout.floor - layout.radius - 4 * motion.height * phase * (1 - phase)

    def contacts(self, begin: float, end: float) -> list[float]:
        """Times in [begin, end) at which the subject touches the floor and sounds."""
        period, phase = self.motion.period, self.motion.phase
        first = -(-(begin / period + phase) // 1)
        found = []
        while (time := (first - phase) * period) < end:
            found.append(time)
            first += 1
        return found

    def background(self) -> torch.Tensor:
        """The room without its subject, [3, SIDE, SIDE]."""
        layout = self.layout
        x, y = _grid()
        wall, floor = (torch.tensor(c)[:, None, None] for c in ROOMS[self.room])
        image = (wall * layout.wall_shade * (1.06 - 0.12 * y / SIDE)).expand(3, SIDE, SIDE)
        cx, cy, half_w, half_h = layout.window
        for grow, colour in ((3.0, FRAME), (0.0, SKY)):
            image = _over(image, torch.maximum((x - cx).abs() - half_w - grow, (y - cy).abs() - half_h - grow), colour)
        image = _over(image, torch.maximum((x - cx).abs() - 1.0, (y - cy).abs() - half_h), FRAME)
        ground = floor * layout.floor_shade * (0.85 + 0.3 * y / SIDE)
        below = (y - layout.horizon + 0.5).clamp(0, 1)
        image = image * (1 - below) + ground * below
        image = _over(image, (y - layout.horizon).abs() - 1.2, (0.93, 0.90, 0.85))
        return _over(image, self._prop(x, y), PROPS[layout.prop_colour]).clamp(0, 1)

    def _prop(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        layout, size = self.layout, self.layout.prop_size
        dx, dy = x - layout.prop_x, y - (layout.horizon + 5 - size)
        if layout.prop_kind == 0:
            return torch.maximum(dx.abs(), dy.abs()) - size
        if layout.prop_kind == 1:
            return (dx**2 + dy**2).sqrt() - size
        return torch.maximum(dy - size, (dx.abs() * 2.4 - dy - size) / 2.6)

    def coverage(self, times: torch.Tensor) -> torch.Tensor:
        """How much of each pixel is the subject, [times, SIDE, SIDE] in [0, 1]."""
        return (0.5 - self._subject(times)).clamp(0, 1)

    def _subject(self, times: torch.Tensor) -> torch.Tensor:
        """Signed distance to the subject's outline, [times, SIDE, SIDE]."""
        x, y = _grid()
        centre_x, centre_y = self.position(times)
        dx, dy, r = x - centre_x[:, None, None], y - centre_y[:, None, None], self.layout.radius
        if self.shape == "box":
            return torch.maximum(dx.abs(), dy.abs()) - r * 0.9
        if self.shape == "cone":
            return torch.maximum(dy - r, (dx.abs() * 2.0 - dy - r) / 2.24)
        distance = (dx**2 + dy**2).sqrt()
        return distance - r if self.shape == "ball" else (distance - 0.70 * r).abs() - 0.30 * r

    def frames(self, times: torch.Tensor) -> torch.Tensor:
        """Frames at ``times``, [times, 3, SIDE, SIDE] in [0, 1]."""
        times = times.float()
        layout = self.layout
        image = self.background()[None].expand(len(times), -1, -1, -1)
        x, y = _grid()
        centre_x, centre_y = (v[:, None, None] for v in self.position(times))
        height = (layout.floor - layout.radius - centre_y) / 60
        reach = ((x - centre_x) / layout.radius) ** 2 + ((y - layout.floor) / 4) ** 2
        shadow = (0.45 - 0.25 * height) * torch.exp(-(reach**2))
        image = image * (1 - shadow)[:, None]
        outline = self._subject(times)
        colour = torch.tensor(COLOURS[self.colour])[:, None, None]
        lit = colour * (1.0 - 0.25 * ((y - centre_y) / layout.radius).clamp(-1, 1)[:, None])
        rim = (0.5 + (outline + 2.0)).clamp(0, 1)[:, None]
        lit = lit * (1 - 0.6 * rim) + (0.25 * rim if self.colour == "black" else 0.0)
        inside = (0.5 - outline).clamp(0, 1)[:, None]
        return (image * (1 - inside) + lit * inside).clamp(0, 1)

    def sound(self, first_sample: int, count: int) -> torch.Tensor:
        """``count`` samples from ``first_sample`` on, [count] in [-1, 1]."""
        time = torch.arange(first_sample, first_sample + count, dtype=torch.float64) / SAMPLE_RATE
        layout = self.layout
        envelope = torch.zeros_like(time)
        for contact in self.contacts(float(time[0]) - 10 * DECAY, float(time[-1]) + 1e-9):
            since = time - contact
            envelope += torch.where(since >= 0, (since / ATTACK).clamp(0, 1) * torch.exp(-since / DECAY), 0.0)
        turn = 2 * torch.pi * time
        note = torch.sin(NOTE_HZ[self.shape] * turn) + layout.undertone * torch.sin(NOTE_HZ[self.shape] / 2 * turn)
        drone = torch.sin(DRONE_HZ[self.room] * turn) + 0.5 * torch.sin(2 * DRONE_HZ[self.room] * turn)
        return (NOTE_LEVEL * envelope * note + layout.drone_level * drone).float()

    def chunk_frames(self, chunk: int) -> torch.Tensor:
        """The frames of chunk ``chunk`` of the scene's clock, [CHUNK_FRAMES, 3, SIDE, SIDE]."""
        return self.frames(chunk_times(chunk))

    def chunk_sound(self, chunk: int) -> torch.Tensor:
        """The sound of chunk ``chunk`` of the scene's clock, [CHUNK_SAMPLES]."""
        return self.sound(chunk * CHUNK_SAMPLES, CHUNK_SAMPLES)


def chunk_times(chunk: int) -> torch.Tensor:
    """Times of the frames of a chunk, [CHUNK_FRAMES], float64."""
    return (torch.arange(CHUNK_FRAMES, dtype=torch.float64) + chunk * CHUNK_FRAMES) / float(FPS)


def _grid() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel centres, x [1, SIDE] and y [SIDE, 1]."""
    line = torch.arange(SIDE, dtype=torch.float32) + 0.5
    return line[None, :], line[:, None]


def _over(image: torch.Tensor, distance: torch.Tensor, colour: tuple[float, float, float]) -> torch.Tensor:
    """Paint ``colour`` where the signed ``distance`` is negative, smoothed over a pixel."""
    inside = (0.5 - distance).clamp(0, 1)
    return image * (1 - inside) + torch.tensor(colour)[:, None, None] * inside
