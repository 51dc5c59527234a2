"""Encoded streams: exact times, no gap, no click, sound and picture together for hours, one fragment a chunk."""

import io
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace

from media.encoder import OPUS_RATE, Encoder, Fragment, Init, Segment
from media.encoding import Encoding
from media.fragments import top_boxes
from media.mp4 import Fmp4Writer
from media.reading import read_frames
from tests.films import (
    AAC,
    CHUNK,
    FPS,
    OPUS,
    RATE,
    SIDE,
    UNEVEN,
    VP9,
    chunks,
    data_of,
    decode,
    encoder,
    film,
    fragments_of,
    lag,
    noise,
    sine,
)

# -- time


@pytest.mark.parametrize("encoding", [AAC, OPUS, VP9], ids=lambda e: f"{e.video}-{e.audio}")
@pytest.mark.parametrize("fps", [FPS, Fraction(30_000, 1001), Fraction(24)], ids=str)
def test_every_frame_and_sample_is_there_at_its_exact_time(encoding: Encoding, fps: Fraction) -> None:
    media = decode(film(encoding, fps=fps))
    assert media.frame_times == tuple(i / fps for i in range(sum(UNEVEN)))
    assert media.audio_start == 0
    assert len(media.samples) == int(sum(UNEVEN) / fps * RATE) * media.sample_rate // RATE
    for i, frame in enumerate(media.frames):
        assert abs(float(frame.mean()) - 8 * (i % 30)) < 3


@pytest.mark.parametrize(
    ("encoding", "rate", "channels"),
    [(AAC, 16_000, 1), (AAC, 44_100, 2), (OPUS, 16_000, 1), (OPUS, 44_100, 2), (VP9, 24_000, 1)],
    ids=lambda v: f"{v.video}-{v.audio}" if isinstance(v, Encoding) else str(v),
)
def test_a_flash_and_a_burst_of_sound_of_the_same_moment_are_decoded_at_the_same_moment(
    encoding: Encoding, rate: int, channels: int
) -> None:
    flashes = (10, 36, 61)
    burst = int(rate / FPS)

    def sound(samples: np.ndarray) -> np.ndarray:
        since = [samples - int(flash / FPS * rate) for flash in flashes]
        return sum(np.where((s >= 0) & (s < burst), 0.8 * np.sin(2 * np.pi * 1000 * s / rate), 0.0) for s in since)

    media = decode(film(encoding, rate=rate, channels=channels, sound=sound, picture=lambda i: 255 * (i in flashes)))
    seen = [time for time, frame in zip(media.frame_times, media.frames, strict=True) if frame.mean() > 128]
    assert seen == [flash / FPS for flash in flashes]
    for channel in range(channels):
        loud = np.flatnonzero(np.abs(media.samples[:, channel]) > 0.4) / media.sample_rate + float(media.audio_start)
        heard = [float(loud[loud >= float(at) - 0.2][0]) for at in seen]
        assert max(abs(h - float(s)) for h, s in zip(heard, seen, strict=True)) < 0.002


def test_sound_and_picture_are_together_after_an_hour_to_the_frame_and_the_sample() -> None:
    # 30,000/1,001 frames per second, a sixth of them; 8.008 s a chunk, cut as unevenly as two decoders may cut it.
    fps, rate, side, count, size = Fraction(5000, 1001), 8000, 16, 450, 40
    total = int(count * size / fps * rate)
    truth = noise(4 * rate)
    dark, silence = np.zeros((size, side, side, 3), np.uint8), np.zeros((total // count + 200, 1), np.float32)
    hour = Encoder(side, side, fps, rate, 1, Encoding(crf=40, audio_kbps=32))
    segments: list[Segment] = []
    made = 0
    for number in range(count - 1):
        stop = (number + 1) * total // count + (number * 31) % 199 - 99
        segments += hour.encode(dark, silence[: stop - made])
        made = stop
        segments[1:] = segments[-2:]
    flash = dark.copy()
    flash[20] = 255
    segments += [*hour.encode(flash, np.concatenate([silence[: total - made - len(truth), 0], truth])[:, None])]
    segments += hour.finish()
    media = decode(data_of(segments))
    seen = [t for t, frame in zip(media.frame_times, media.frames, strict=True) if frame.mean() > 128]
    assert seen == [((count - 1) * size + 20) / fps]
    assert seen[0] > 3599
    end = media.audio_start + Fraction(len(media.samples), rate)
    assert end == Fraction(total, rate)
    assert lag(media.samples[-len(truth) :, 0], truth, 40) == 0


def test_resampling_loses_no_sample_at_the_borders_of_chunks() -> None:
    # 11,025 Hz does not divide 48,000; had each chunk its own edges, three hundred would add up.
    rate, count = 11_025, 300
    stream = Encoder(SIDE, SIDE, FPS, rate, 1, OPUS)
    truth = noise(count * 777)
    segments = stream.encode(CHUNK[0][:1], truth[:0, None])
    for number in range(count):
        segments += stream.encode(CHUNK[0][:0], truth[number * 777 : (number + 1) * 777, None])
    media = decode(data_of(segments + stream.finish()))
    assert abs(len(media.samples) - len(truth) * Fraction(OPUS_RATE, rate)) <= 1
    at = np.arange(len(truth) - 8000, len(truth) - 2000)
    tail = np.interp(at * OPUS_RATE / rate, np.arange(len(media.samples)), media.samples[:, 0])
    assert lag(tail, truth[at], 40) == 0


# -- sound


@pytest.mark.parametrize("encoding", [AAC, OPUS], ids=lambda e: e.audio)
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_how_the_sound_is_cut_into_chunks_cannot_be_heard(encoding: Encoding, rate: int) -> None:
    cut = decode(film(encoding, rate=rate, sound=lambda s: sine(s, rate)))
    whole = decode(film(encoding, frames=(sum(UNEVEN),), rate=rate, sound=lambda s: sine(s, rate)))
    assert np.array_equal(cut.samples, whole.samples)
    truth = sine(np.arange(len(cut.samples)), cut.sample_rate)
    inside = slice(cut.sample_rate // 4, -cut.sample_rate // 4)
    assert np.abs(cut.samples[inside, 0] - truth[inside]).max() < 0.05


def test_loud_samples_are_clipped_and_not_wrapped() -> None:
    media = decode(film(OPUS, sound=lambda s: 4 * sine(s)))
    assert np.abs(media.samples).max() < 1.4
    louder, loud = (film(AAC, sound=lambda s, k=k: k * np.sign(sine(s))) for k in (7.0, 1.0))
    assert louder == loud


def test_stereo_channels_stay_apart() -> None:
    sink = io.BytesIO()
    with Fmp4Writer(sink, SIDE, SIDE, FPS, RATE, 2, AAC) as writer:
        writer.write(CHUNK[0], np.stack([sine(np.arange(10_240)), np.zeros(10_240)], 1).astype(np.float32))
    left, right = decode(sink.getvalue()).samples.T
    assert np.abs(left).max() > 0.4
    assert np.abs(right).max() < 0.02


# -- picture


@pytest.mark.parametrize("encoding", [AAC, VP9], ids=lambda e: e.video)
def test_colours_come_back_and_are_labelled(encoding: Encoding) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [230, 36, 30], [128, 128, 128]], np.uint8)
    stream = encoder(encoding)
    frames = np.broadcast_to(colours[:, None, None], (5, SIDE, SIDE, 3))
    data = data_of(stream.encode(frames, CHUNK[1]) + stream.finish())
    for frame, colour in zip(decode(data).frames, colours, strict=True):
        assert np.abs(frame.mean((0, 1)) - colour).max() < 6
    with av.open(io.BytesIO(data)) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (Colorspace.ITU709, ColorRange.MPEG)


def test_torch_and_numpy_and_views_give_the_same_bytes() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (8, SIDE, SIDE, 3), np.uint8)
    samples = noise(10_240)[:, None]
    wide = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
    ways: list[tuple[Any, Any]] = [
        (frames, samples),
        (torch.from_numpy(frames), torch.from_numpy(samples)),
        (wide.permute(0, 2, 3, 1), torch.from_numpy(np.repeat(samples, 2, 1))[:, :1]),
    ]
    made = [data_of((stream := encoder()).encode(*way) + stream.finish()) for way in ways]
    assert made[0] == made[1] == made[2]


# -- fragments


@pytest.mark.parametrize("encoding", [AAC, VP9], ids=lambda e: e.video)
def test_a_chunk_leaves_at_once_as_one_fragment_with_all_its_frames(encoding: Encoding) -> None:
    stream = encoder(encoding)
    segments = stream.encode(*CHUNK)
    assert [type(segment) for segment in segments] == [Init, Fragment]
    for number in range(1, 7):
        segments += stream.encode(*CHUNK)
        fragments = fragments_of(segments)
        assert len(fragments) == number + 1
        assert fragments[-1].start == number * 8 / FPS
        assert [kind for kind, _ in top_boxes(fragments[-1].data)] == [b"moof", b"mdat"]
        assert len(decode(data_of(segments)).frames) == 8 * (number + 1)
    # Key frames: 25 frames are 2 s, and the next chunk after that begins at frame 32.
    assert [fragment.key for fragment in fragments_of(segments)] == [True, False, False, False, True, False, False]


def test_one_can_join_at_any_key_fragment() -> None:
    stream = encoder(replace(AAC, key_seconds=1))
    segments = [s for c in chunks((8,) * 9, FPS, RATE, lambda i: 3 * i, sine) for s in stream.encode(*c)]
    segments += stream.finish()
    joins = [i for i, segment in enumerate(segments) if isinstance(segment, Fragment) and segment.key]
    assert len(joins) == 5
    for join in joins:
        begin = segments[join]
        assert isinstance(begin, Fragment)
        media = decode(data_of([segments[0], *segments[join:]]))
        first = int(begin.start * FPS)
        assert media.frame_times == tuple(i / FPS for i in range(first, 72))
        assert abs(float(media.frames[0].mean()) - 3 * first) < 3


@pytest.mark.parametrize("encoding", [AAC, OPUS, VP9], ids=lambda e: f"{e.video}-{e.audio}")
def test_another_encoder_goes_on_in_the_midst_with_the_same_header_and_in_time(encoding: Encoding) -> None:
    def burst(samples: np.ndarray) -> np.ndarray:
        return sine(samples) * ((samples > 50_000) & (samples < 51_600))

    parts = list(chunks((8,) * 9, FPS, RATE, lambda i: 240 if i == 40 else 3 * i, burst))
    first = encoder(encoding)
    before = [s for c in parts[:6] for s in first.encode(*c)]
    second = Encoder(SIDE, SIDE, FPS, RATE, 1, encoding, (32, sum(len(sound) for _, sound in parts[:4])))
    after = []
    for part in parts[4:]:
        second.key_next()
        after += second.encode(*part)
    after += second.finish()
    assert isinstance(before[0], Init)
    assert before[0] == after[0]
    assert all(fragment.key for fragment in fragments_of(after)[:5])
    assert fragments_of(after)[0].start == fragments_of(before)[4].start
    media = decode(data_of([*before[:5], *after[1:]]))
    assert media.frame_times == tuple(i / FPS for i in range(72))
    assert abs(float(media.frames[40].mean()) - 240) < 5
    alone = decode(data_of([before[0], *after[1:]]))
    assert abs(float(alone.audio_start) * RATE - sum(len(sound) for _, sound in parts[:4])) < 1
    loud = (
        np.flatnonzero(np.abs(alone.samples[:, 0]) > 0.2) * RATE / alone.sample_rate + float(alone.audio_start) * RATE
    )
    assert abs(loud[0] - 50_000) < 0.005 * RATE
    assert abs(loud[-1] - 51_600) < 0.005 * RATE


@pytest.mark.parametrize(
    ("encoding", "mime"), [(AAC, "avc1.42c00a,mp4a.40.2"), (OPUS, "avc1.42c00a,opus"), (VP9, "vp09.00.10.08,opus")]
)
def test_the_header_says_what_a_browser_must_be_able_to_play(encoding: Encoding, mime: str) -> None:
    header = encoder(encoding).encode(*CHUNK)[0]
    assert isinstance(header, Init)
    assert header.mime == f'video/mp4; codecs="{mime}"'
    assert [kind for kind, _ in top_boxes(header.data)] == [b"ftyp", b"moov"]


def test_tracks_may_run_apart_and_begin_late() -> None:
    stream = encoder()
    frames, samples = CHUNK
    assert stream.encode(frames, samples[:0]) == []
    segments = stream.encode(frames[:0], samples)
    assert [type(segment) for segment in segments] == [Init, Fragment]
    assert stream.encode(frames[:0], samples[:0]) == []
    segments += stream.encode(frames[:0], samples) + stream.encode(frames, samples[:0])
    starts = [fragment.start for fragment in fragments_of(segments)]
    assert starts[0] == 0
    assert starts[2] == 8 / FPS
    media = decode(data_of(segments + stream.finish()))
    assert (len(media.frames), len(media.samples)) == (16, 20_480)


@pytest.mark.parametrize("encoding", [AAC, VP9], ids=lambda e: e.video)
def test_a_stream_that_never_had_sound_plays_and_one_without_anything_is_empty(encoding: Encoding) -> None:
    silent, nothing, blind = encoder(encoding), encoder(encoding), encoder(encoding)
    assert silent.encode(CHUNK[0], CHUNK[1][:0]) == []
    assert [time for time, _ in read_frames(io.BytesIO(data_of(silent.finish())))] == [i / FPS for i in range(8)]
    assert nothing.encode(CHUNK[0][:0], CHUNK[1][:0]) == nothing.finish() == []
    assert blind.encode(CHUNK[0][:0], CHUNK[1]) == []
    assert [type(segment) for segment in blind.finish()] == [Init, Fragment]


def test_a_bound_on_the_bit_rate_holds() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (50, SIDE, SIDE, 3), np.uint8)
    for codec in (AAC, VP9):
        free, bound = (
            len(data_of((stream := encoder(choice)).encode(frames, CHUNK[1]) + stream.finish()))
            for choice in (codec, replace(codec, video_kbps=20))
        )
        assert bound < 4 * 20_000 / 8 * 1.5 + 5_000 < free
