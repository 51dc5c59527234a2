"""Streams that end early, are refused or have nowhere to go: what was written plays, and nothing else is touched."""

import io
import resource
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from errors import ConfigError, LongtakeError, MediaError
from media.encoder import Encoder
from media.encoding import Encoding
from media.fragments import top_boxes
from media.mp4 import Fmp4Writer
from media.output import open_output
from media.reading import read, read_frames
from tests.films import (
    CHUNK,
    FPS,
    OPUS,
    RATE,
    SIDE,
    chunks,
    data_of,
    decode,
    encoder,
    film,
    sine,
)

# -- stops


def test_a_file_plays_while_it_grows_and_when_nobody_closed_it(tmp_path: Path) -> None:
    path = tmp_path / "take.mp4"
    with open_output(path) as file:
        writer, made = Fmp4Writer(file, SIDE, SIDE, FPS, RATE, 1), 0
        for number, chunk in enumerate(chunks((8,) * 4, FPS, RATE, lambda i: 4 * i, sine), 1):
            writer.write(*chunk)
            made += len(chunk[1])
            media = read(path)
            assert len(media.frames) == 8 * number
            assert 0 <= made - len(media.samples) < 3 * 1024
        writer.close()
        assert len(read(path).samples) == 4 * 10_240


def test_a_file_cut_anywhere_plays_up_to_the_cut(tmp_path: Path) -> None:
    data = film(frames=(8,) * 4, picture=lambda i: 6 * i)
    whole = decode(data)
    ends = list(accumulate(len(box) for _, box in top_boxes(data)))
    last_moof, last_mdat = ends[-4:-2]  # of the last chunk; what close wrote comes after it
    for cut in (ends[-5], ends[-5] + 5, ends[-5] + 50, last_moof - 1, last_moof, last_moof + 40, last_mdat - 1):
        (tmp_path / "cut.mp4").write_bytes(data[:cut])
        media = read(tmp_path / "cut.mp4")
        assert len(media.frames) >= 24
        assert np.array_equal(media.frames[:24], whole.frames[:24])
        assert media.frame_times == whole.frame_times[: len(media.frames)]
        assert len(media.samples) > 2 * 10_240


def test_a_full_disk_leaves_whole_chunks_and_says_so(tmp_path: Path) -> None:
    path, before = tmp_path / "take.mp4", resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_output(path) as file:
        writer = Fmp4Writer(file, SIDE, SIDE, FPS, RATE, 1)
        writer.write(*CHUNK)
        whole = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 50, before[1]))
        try:
            with pytest.raises(MediaError, match=r"cannot be written on.*what was written before plays"):
                writer.write(*CHUNK)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        with pytest.raises(MediaError, match="closed"):
            writer.write(*CHUNK)
        writer.close()
    assert path.read_bytes() == whole


class Interrupting(io.BytesIO):
    """A sink at whose third segment somebody presses Ctrl-C, or the other side hangs up."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error, self.calls = error, 0

    def write(self, data: Any, /) -> int:
        self.calls += 1
        if self.calls == 3:
            raise self.error
        return super().write(data)


def write_two_chunks(sink: Interrupting | io.BytesIO, then: BaseException | None = None) -> None:
    with Fmp4Writer(sink, SIDE, SIDE, FPS, RATE, 1) as writer:
        writer.write(*CHUNK)
        writer.write(*CHUNK)
        if then is not None:
            raise then


@pytest.mark.parametrize(("error", "seen"), [(KeyboardInterrupt(), KeyboardInterrupt), (BrokenPipeError(), MediaError)])
def test_nothing_follows_a_segment_that_was_broken_off(error: BaseException, seen: type[BaseException]) -> None:
    sink = Interrupting(error)
    with pytest.raises(seen):
        write_two_chunks(sink)
    assert sink.calls == 3
    assert len(decode(sink.getvalue()).frames) == 8


def test_an_error_between_chunks_loses_nothing() -> None:
    sink = io.BytesIO()
    with pytest.raises(KeyboardInterrupt):
        write_two_chunks(sink, KeyboardInterrupt())
    media = decode(sink.getvalue())
    assert (len(media.frames), len(media.samples)) == (16, 20_480)


def test_a_chunk_that_was_broken_off_while_encoding_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    stream = encoder()
    segments = stream.encode(*CHUNK)
    monkeypatch.setattr(stream, "_encode_samples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream.encode(*CHUNK)
    with pytest.raises(MediaError, match="broken off"):
        stream.encode(*CHUNK)
    assert stream.finish() == []
    assert len(decode(data_of(segments)).frames) == 8


def test_closing_twice_is_closing_once() -> None:
    sink = io.BytesIO()
    writer = Fmp4Writer(sink, SIDE, SIDE, FPS, RATE, 1)
    writer.write(*CHUNK)
    writer.close()
    data = sink.getvalue()
    writer.close()
    assert sink.getvalue() == data
    with pytest.raises(MediaError, match="closed"):
        writer.write(*CHUNK)


# -- refusals


@pytest.mark.parametrize(
    ("frames", "samples", "message"),
    [
        (CHUNK[0].astype(np.float32), CHUNK[1], "frames are float32; expected a torch or numpy array of uint8"),
        (CHUNK[0][:, :-2], CHUNK[1], r"frames have shape \(8, 30, 32, 3\); expected \(frames, 32, 32, 3\)"),
        (CHUNK[0][0], CHUNK[1], r"frames have shape \(32, 32, 3\)"),
        ([1, 2], CHUNK[1], "frames are list"),
        (CHUNK[0], CHUNK[1].astype(np.float64), "samples are float64; expected a torch or numpy array of float32"),
        (CHUNK[0], CHUNK[1][:, 0], r"samples have shape \(10240,\); expected \(samples, 1\)"),
        (CHUNK[0], CHUNK[1].T, r"samples have shape \(1, 10240\); expected \(samples, 1\): channels last"),
        (CHUNK[0], np.full((4, 1), np.nan, np.float32), "4 of 4 samples are NaN or infinite"),
        (CHUNK[0], np.array([[np.inf], [0]], np.float32), "1 of 2 samples are NaN or infinite"),
    ],
)
def test_a_chunk_that_is_refused_leaves_no_trace(frames: Any, samples: Any, message: str) -> None:
    stream, undisturbed = encoder(), encoder()
    segments = stream.encode(*CHUNK)
    with pytest.raises(MediaError, match=message):
        stream.encode(frames, samples)
    segments += stream.encode(*CHUNK) + stream.finish()
    assert segments == undisturbed.encode(*CHUNK) + undisturbed.encode(*CHUNK) + undisturbed.finish()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 127}, "width is 127 pixels; expected an even number.*crop or pad"),
        ({"height": 8}, "height is 8 pixels"),
        ({"fps": Fraction(0)}, "fps is .*expected an exact rate"),
        ({"fps": 12.5}, r"fps is 12.5; expected an exact rate .* such as Fraction\(25, 2\)"),
        ({"fps": Fraction(29.97)}, "fps is .*expected an exact rate"),
        ({"channels": 6}, "channels is 6; expected 1 .mono. or 2"),
        ({"sample_rate": 17_000}, "sample_rate is 17000; AAC knows .*16000.*: choose opus"),
        ({"sample_rate": 100, "encoding": OPUS}, "sample_rate is 100 Hz"),
    ],
)
def test_a_stream_that_cannot_be_encoded_is_refused_at_once(change: dict[str, Any], message: str) -> None:
    good = {"width": SIDE, "height": SIDE, "fps": FPS, "sample_rate": RATE, "channels": 1}
    with pytest.raises(ConfigError, match=message):
        Encoder(**(good | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": "h265"}, "video is 'h265'; expected one of h264, vp9"),
        ({"audio": "mp3"}, "audio is 'mp3'; expected one of aac, opus"),
        ({"preset": "placebo"}, "preset is 'placebo'; expected one of ultrafast"),
        ({"crf": 0}, "crf is 0; expected 1 to 51"),
        ({"crf": 52}, "crf is 52; expected 1 to 51"),
        ({"video_kbps": 0}, "video_kbps is 0; expected 8"),
        ({"audio_kbps": 1000}, "audio_kbps is 1000; expected 8 to 256"),
        ({"key_seconds": float("nan")}, "key_seconds is nan"),
        ({"threads": 0}, "threads is 0; expected 1 to 64"),
    ],
)
def test_an_encoding_names_what_is_wrong_with_it(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Encoding(**change)


# -- files


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "is a folder; expected the name of a file in it, such as .*take.mp4"),
        ("missing/take.mp4", "there is no folder .*missing; make it"),
        ("there.mp4", "exists already; name another file, or allow it to be overwritten"),
        ("there.mp4/take.mp4", "there is no folder"),
        ("x" * 300, "cannot be written: File name too long"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "there.mp4").write_bytes(b"earlier")
    with pytest.raises(MediaError, match=message) as caught:
        open_output(tmp_path / name)
    assert isinstance(caught.value, LongtakeError)
    assert caught.value.code == "media"
    assert [path.name for path in tmp_path.iterdir()] == ["there.mp4"]
    assert (tmp_path / "there.mp4").read_bytes() == b"earlier"


def test_a_disk_that_is_nearly_full_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"1,000 bytes are free in .*; expected 2,000"):
        open_output(tmp_path / "take.mp4", need_bytes=2000, free_bytes=lambda _: 1000)
    assert not list(tmp_path.iterdir())


def test_an_earlier_file_is_replaced_when_the_first_segment_comes_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "take.mp4"
    path.write_bytes(b"x" * 100_000)
    open_output(path, overwrite=True).close()
    assert path.stat().st_size == 100_000
    with open_output(path, overwrite=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_start_that_fails_leaves_no_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_output(tmp_path / "take.mp4"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_reading_says_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"none\.mp4 cannot be read"):
        read(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no film " * 100)
    with pytest.raises(MediaError, match="cannot be read"):
        list(read_frames(tmp_path / "text.mp4"))
    with av.open(tmp_path / "tone.mp4", "w") as container:
        stream = container.add_stream("aac", RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="has no video; expected video and audio"):
        read(tmp_path / "tone.mp4")
