"""How a stream is encoded: what of quality, size and compatibility is for the user to choose."""

from dataclasses import dataclass
from typing import Literal, get_args

from errors import ConfigError

Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"]
# Up to the highest number a viewer sees the same picture, only worse; 0 is another, lossless format to x264.
_WORST_CRF = {"h264": 51, "vp9": 63}


@dataclass(frozen=True)
class Encoding:
    """Codecs and rates of a stream.

    Args:
        video: ``h264`` plays everywhere; ``vp9`` in browsers that were built without H.264.
        preset: x264's; slower ones make smaller files of the same quality. VP9 always runs at its fastest.
        crf: quality of the picture, lower is better; h264 1 to 51, vp9 1 to 63.
        video_kbps: bound of the video's bit rate over a second, in kbit/s; by default quality alone decides.
        audio: ``aac`` plays everywhere, ``opus`` in browsers and most players, at 48 kHz, to which it resamples. What
            AAC holds back until the next chunk are up to 3,072 samples (192 ms at 16 kHz), and Opus less than 30 ms.
        audio_kbps: bit rate of each audio channel, in kbit/s; less is taken where less will do. At 48 kHz and 64 kbit/s
            FFmpeg's AAC breaks up on pure tones (errors as loud as the tone, measured); at 128 they are at −60 dB.
        key_seconds: the first chunk that begins this long after a key frame, or longer, begins with one; only from a
            key frame on can a player seek or join.
        threads: CPU threads for the video; one is enough for a small stream, and leaves the rest to other streams.

    Raises:
        ConfigError: naming the field, its value and what was expected.
    """

    video: Literal["h264", "vp9"] = "h264"
    preset: Preset = "ultrafast"
    crf: int = 20
    video_kbps: int | None = None
    audio: Literal["aac", "opus"] = "aac"
    audio_kbps: int = 128
    key_seconds: float = 2.0
    threads: int = 1

    def __post_init__(self) -> None:
        _check_choice("video", self.video, tuple(_WORST_CRF))
        _check_choice("preset", self.preset, get_args(Preset))
        _check_choice("audio", self.audio, ("aac", "opus"))
        _check_range("crf", self.crf, 1, _WORST_CRF[self.video])
        _check_range("video_kbps", 8 if self.video_kbps is None else self.video_kbps, 8, 1_000_000)
        _check_range("audio_kbps", self.audio_kbps, 8, 256)
        _check_range("key_seconds", self.key_seconds, 0, 3600)
        _check_range("threads", self.threads, 1, 64)

    def video_codec(self) -> tuple[str, dict[str, str]]:
        """FFmpeg's name of the video encoder, and options by which each frame leaves it before the next one enters."""
        kbps = self.video_kbps
        if self.video == "h264":
            # annexb=0: packets as MP4 stores them, with lengths instead of start codes.
            options = {"preset": self.preset, "tune": "zerolatency", "forced-idr": "1", "x264-params": "annexb=0"}
            rate = {} if kbps is None else {"maxrate": f"{kbps}k", "bufsize": f"{kbps}k"}
            return "libx264", options | rate | {"crf": str(self.crf)}
        options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "auto-alt-ref": "0"}
        return "libvpx-vp9", options | {"crf": str(self.crf), "b": "0" if kbps is None else f"{kbps}k"}


def _check_choice(name: str, value: object, expected: tuple[str, ...]) -> None:
    if value not in expected:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(expected)}")


def _check_range(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; expected {low:,} to {high:,}")
