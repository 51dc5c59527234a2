"""Chunks of frames and sound into segments of fragmented MP4: a header, then one fragment per chunk.

Each track counts its own frames or samples, so a chunk may bring a little more sound than picture, or less. Time 0 of
both is the same moment: what the audio encoder puts in front (priming) is cut off by an edit list.
"""

import io
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeVar

import av
import numpy as np
import torch
from av.audio import AudioStream
from av.packet import Packet
from av.video import VideoStream
from av.video.frame import PictureType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from numpy.typing import NDArray

from errors import ConfigError, MediaError
from media.encoding import Encoding
from media.fragments import Sample, fragment, top_boxes

Array = torch.Tensor | NDArray[Any]
Number = TypeVar("Number", np.uint8, np.float32)
VIDEO_TRACK, AUDIO_TRACK = 1, 2
OPUS_RATE = 48_000
LAYOUTS = {1: "mono", 2: "stereo"}


@dataclass(frozen=True)
class Init:
    """The header of a stream, which comes first and once; ``mime`` is what ``MediaSource.isTypeSupported`` wants."""

    data: bytes
    mime: str


@dataclass(frozen=True)
class Fragment:
    """One chunk, whole; ``key``: playing can begin here; ``start`` is its time in seconds (of its video, if any)."""

    data: bytes
    key: bool
    start: Fraction


Segment = Init | Fragment


@dataclass
class _Track:
    """What one encoder made that is not in a fragment yet."""

    stream: VideoStream | AudioStream
    timescale: int
    first: "Packet[Any] | None" = None  # the header is made of it
    end: int = 0
    samples: list[Sample] = field(default_factory=list)

    def take(self, packet: "Packet[Any]", duration: int) -> None:
        # Durations are added up, for a resampler's time stamps are rounded and may be off by one.
        self.samples.append(Sample(bytes(packet), self.end, duration, packet.is_keyframe))
        self.end += duration
        self.first = self.first or packet


class Encoder:
    """Turns chunks of frames and sound into segments; holds no file and calls nobody."""

    def __init__(
        self,
        width: int,
        height: int,
        fps: Fraction,
        sample_rate: int,
        channels: int,
        encoding: Encoding | None = None,
        begin: tuple[int, int] = (0, 0),
    ) -> None:
        """``width`` and ``height`` in pixels, ``fps`` in frames per second, exact, ``sample_rate`` in Hz.

        Args:
            begin: frames and samples that came before, from another encoder of the same kind: this one goes on in
                time, and its header is the same.

        Raises:
            ConfigError: a size, rate or number of channels that cannot be encoded.
        """
        self.encoding = encoding or Encoding()
        _check_shape(width, height, fps, sample_rate, channels, self.encoding)
        self.width, self.height, self.fps = width, height, fps
        self.sample_rate, self.channels = sample_rate, channels
        self.frames = self.samples = self.fragments = 0
        self._priming = Fraction(0)
        self._before = begin
        self._key_due = 0  # frame from which on a chunk begins with a key frame
        self._reformatter = VideoReformatter()
        self._usable = True
        scale = -(-10_000 // fps.numerator)  # fine enough for players that round to their own units
        self._open(fps.numerator * scale)

    def encode(self, frames: Array, samples: Array) -> list[Segment]:
        """All that can be played of ``frames`` [n, height, width, 3] (uint8, RGB) and ``samples`` [m, channels].

        Samples are float32 in [−1, 1]; what lies outside is clipped. Either may be empty. The header comes with the
        first chunk that brings both. Sound that does not fill a frame of its codec yet comes with the next chunk.

        Raises:
            MediaError: wrong shape or type, or samples that are not finite, and then nothing was taken; or the stream
                was finished or broken off.
        """
        if not self._usable:
            raise MediaError("this stream was closed or broken off in the midst of a chunk; expected one that is open")
        pictures, sound = self._checked_frames(frames), self._checked_samples(samples)
        self._usable = False  # until all is done: after a Ctrl-C in between, the encoders may have lost a frame
        for index in range(len(pictures)):
            self._encode_frame(pictures[index], index == 0)
        if len(sound):
            self._encode_samples(sound)
        segments = self._segments(last=False)
        self._usable = True
        return segments

    @property
    def end(self) -> tuple[int, int]:
        """Frames and samples of the stream until now: where another encoder would have to begin."""
        return self._before[0] + self.frames, self._before[1] + self.samples

    def key_next(self) -> None:
        """Let the next chunk begin with a key frame."""
        self._key_due = self.frames

    def finish(self) -> list[Segment]:
        """What the encoders still hold, after which nothing can be encoded; nothing if a chunk was broken off."""
        if not self._usable:
            return []
        self._usable = False
        if self.frames:
            self._take_video(self._video_context.encode(None))
        if self.samples:
            self._take_audio(self._audio_context.encode(None))
        return self._segments(last=True)

    def _open(self, timescale: int) -> None:
        """Open both encoders in a container that is there for the header only."""
        encoding, opus = self.encoding, self.encoding.audio == "opus"
        self._header = io.BytesIO()
        # delay_moov: the edit list is written with the priming of the packets that follow.
        movflags = {"movflags": "delay_moov+default_base_moof+skip_trailer", "video_track_timescale": str(timescale)}
        keep_times = {"use_editlist": "1", "avoid_negative_ts": "disabled"}
        self._container = av.open(self._header, "w", format="mp4", options=movflags | keep_times)
        codec, options = encoding.video_codec()
        video = self._container.add_stream(codec, self.fps, options, width=self.width, height=self.height)
        audio_rate = OPUS_RATE if opus else self.sample_rate
        audio = self._container.add_stream("libopus" if opus else "aac", audio_rate)
        assert isinstance(video, VideoStream)
        assert isinstance(audio, AudioStream)
        picture, sound = video.codec_context, audio.codec_context
        picture.time_base, picture.gop_size, picture.thread_count = 1 / self.fps, 1 << 30, encoding.threads
        picture.color_range, picture.colorspace = ColorRange.MPEG, Colorspace.ITU709
        picture.color_primaries, picture.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        sound.layout, sound.bit_rate = LAYOUTS[self.channels], 1000 * encoding.audio_kbps * self.channels
        if opus:
            sound.format = "flt"
        self._container.start_encoding()
        self._video_context, self._audio_context = picture, sound
        self._tracks = {VIDEO_TRACK: _Track(video, timescale), AUDIO_TRACK: _Track(audio, audio_rate)}
        # The encoders count from 0, so that the header does not tell when they began.
        self._tracks[VIDEO_TRACK].end = int(self._before[0] * timescale / self.fps)
        self._tracks[AUDIO_TRACK].end = round(Fraction(self._before[1] * audio_rate, self.sample_rate))

    def _encode_frame(self, picture: NDArray[np.uint8], begins_chunk: bool) -> None:
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=self.encoding.threads,
        )
        frame.pts, frame.time_base = self.frames, 1 / self.fps
        frame.pict_type = PictureType.NONE
        if begins_chunk and self.frames >= self._key_due:
            frame.pict_type = PictureType.I
            self._key_due = self.frames + round(self.encoding.key_seconds * self.fps)
        self.frames += 1
        self._take_video(self._video_context.encode(frame))

    def _encode_samples(self, sound: NDArray[np.float32]) -> None:
        # The codec context owns one resampler for the whole stream, which also cuts it into the codec's frames.
        packed = np.ascontiguousarray(sound.clip(-1, 1)).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=LAYOUTS[self.channels])
        frame.sample_rate, frame.pts, frame.time_base = self.sample_rate, self.samples, Fraction(1, self.sample_rate)
        self.samples += len(sound)
        self._take_audio(self._audio_context.encode(frame))

    def _take_video(self, packets: "list[Packet[Any]]") -> None:
        track = self._tracks[VIDEO_TRACK]
        for packet in packets:
            track.take(packet, int(track.timescale / self.fps))

    def _take_audio(self, packets: "list[Packet[Any]]") -> None:
        for packet in packets:
            if packet.duration is None or packet.pts is None:
                raise MediaError("the audio encoder gave a packet without time; expected one of FFmpeg's own encoders")
            track = self._tracks[AUDIO_TRACK]
            if track.first is None:
                self._priming = Fraction(-packet.pts, track.timescale)
            track.take(packet, packet.duration)

    def _segments(self, last: bool) -> list[Segment]:
        """The header, if it is time for it, and a fragment of all that is pending."""
        segments: list[Segment] = []
        tracks = self._tracks.values()
        if not any(track.samples for track in tracks):
            return segments
        if not self.fragments:
            if not last and not all(track.first for track in tracks):
                return segments
            segments.append(self._init())
        self.fragments += 1
        data = fragment(self.fragments, {number: track.samples for number, track in self._tracks.items()})
        video, audio = (track.samples for track in tracks)
        if video:
            start = Fraction(video[0].time, self._tracks[VIDEO_TRACK].timescale)
        else:
            start = max(Fraction(0), Fraction(audio[0].time, self._tracks[AUDIO_TRACK].timescale) - self._priming)
        segments.append(Fragment(data, bool(video) and video[0].key, start))
        for track in tracks:
            track.samples = []
        return segments

    def _init(self) -> Init:
        for track in self._tracks.values():
            if track.first is not None:
                track.first.stream = track.stream
                self._container.mux_one(track.first)
        self._container.close()
        boxes = dict(top_boxes(self._header.getvalue()))
        data = boxes[b"ftyp"] + boxes[b"moov"]
        self._header = io.BytesIO()
        return Init(data, _mime(data, self.encoding))

    def _checked_frames(self, frames: Array) -> NDArray[np.uint8]:
        array = _array("frames", frames, np.uint8)
        expected = (self.height, self.width, 3)
        if array.ndim != 4 or array.shape[1:] != expected:
            raise MediaError(f"frames have shape {array.shape}; expected (frames, {', '.join(map(str, expected))})")
        return array

    def _checked_samples(self, samples: Array) -> NDArray[np.float32]:
        array = _array("samples", samples, np.float32)
        if array.ndim != 2 or array.shape[1] != self.channels:
            raise MediaError(f"samples have shape {array.shape}; expected (samples, {self.channels}): channels last")
        wrong = array.size - int(np.isfinite(array).sum())
        if wrong:
            raise MediaError(f"{wrong} of {array.size} samples are NaN or infinite; expected numbers in [-1, 1]")
        return array


def _check_shape(width: int, height: int, fps: Fraction, sample_rate: int, channels: int, encoding: Encoding) -> None:
    for name, value in (("width", width), ("height", height)):
        if value < 16 or value > 16_384 or value % 2:
            raise ConfigError(
                f"{name} is {value} pixels; expected an even number from 16 to 16,384 (colour is stored at half the "
                "size): crop or pad the frames"
            )
    if not isinstance(fps, Fraction) or not Fraction(1, 10) <= fps <= 1000 or fps.numerator > 1_000_000:
        raise ConfigError(f"fps is {fps!r}; expected an exact rate from 1/10 to 1,000 such as Fraction(25, 2)")
    if channels not in LAYOUTS:
        raise ConfigError(f"channels is {channels}; expected 1 (mono) or 2 (stereo)")
    rates = sorted(av.Codec("aac", "w").audio_rates or ())
    if encoding.audio == "aac" and sample_rate not in rates:
        raise ConfigError(f"sample_rate is {sample_rate}; AAC knows {rates}: choose opus, which resamples")
    if not 4000 <= sample_rate <= 192_000:
        raise ConfigError(f"sample_rate is {sample_rate} Hz; expected 4,000 to 192,000")


def _array(name: str, values: Array, dtype: type[Number]) -> NDArray[Number]:
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise MediaError(f"{name} are {found}; expected a torch or numpy array of {np.dtype(dtype)}")
    return array


def _mime(header: bytes, encoding: Encoding) -> str:
    """RFC 6381, from the decoder configurations in the header."""
    if encoding.video == "h264":
        video = f"avc1.{header[(at := header.index(b'avcC') + 5) : at + 3].hex()}"
    else:
        profile, level, depth = header[(at := header.index(b"vpcC") + 8) : at + 3]
        video = f"vp09.{profile:02d}.{level:02d}.{depth >> 4:02d}"
    return f'video/mp4; codecs="{video},{"opus" if encoding.audio == "opus" else "mp4a.40.2"}"'
