"""Frames and sound by time stamp, on small files of every kind and fault, written here."""
from __future__ import annotations

import multiprocessing
import os
import struct
from itertools import pairwise

import numpy as np
import pytest

av = pytest.importorskip("av")

from recognition.media_files import (  # noqa: E402
    CONTAINERS,
    RATE,
    cut,
    decoded_in_order,
    numbered,
    numbers_of,
    textured,
    tone,
    write,
    write_pcm,
    write_sound,
)

from mmfusion_plugin.recognition import media  # noqa: E402
from mmfusion_plugin.recognition.media import (  # noqa: E402
    DamagedMedia,
    EmptyStream,
    MissingFile,
    NoStream,
    frame_times,
    probe,
    read_frames,
    read_sound,
    sound_span,
    write_clip,
    write_wav,
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """50 numbered frames at 10 fps, 5 s of sound."""
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    write_clip(path, numbered(50), 10, tone(5), RATE)
    return path


def test_probe_reads_the_header(clip):
    info = probe(clip)
    assert (info.has_video, info.width, info.height, info.frames, info.average_fps) == (True, 64, 48, 50, 10)
    assert (info.has_audio, info.sample_rate, info.channels) == (True, RATE, 1)
    assert info.duration == pytest.approx(5, abs=0.1)


def test_frame_times_are_the_stamps_written(clip):
    np.testing.assert_allclose(frame_times(clip), np.arange(50) / 10, atol=1e-9)


def test_a_frame_is_on_screen_from_its_stamp_to_the_next(clip):
    asked = [0.0, 0.099, 0.1, 0.1001, 4.89, 2.35, 2.35, 0.31]
    frames, stamps = read_frames(clip, asked)
    assert numbers_of(frames) == [0, 0, 1, 1, 48, 23, 23, 3]
    np.testing.assert_allclose(stamps, [0, 0, 0.1, 0.1, 4.8, 2.3, 2.3, 0.3], atol=1e-9)
    assert all(frame.shape == (48, 64, 3) and frame.dtype == np.uint8 for frame in frames)


def test_times_outside_give_the_first_and_the_last_frame(clip):
    assert numbers_of(read_frames(clip, [-3.0, 99.0])[0]) == [0, 49]


def test_a_repeated_frame_is_an_array_of_its_own(clip):
    first, second = read_frames(clip, [1.0, 1.0])[0]
    assert not np.shares_memory(first, second)


def test_colours_are_rgb(tmp_path):
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    write_clip(tmp_path / "red.mp4", [red] * 3, 10)
    assert np.abs(read_frames(tmp_path / "red.mp4", [0.1])[0][0].astype(int) - red).max() < 12


@pytest.mark.parametrize("form", CONTAINERS)
@pytest.mark.parametrize("b_frames", ["0", "2"])
def test_every_container_gives_every_frame_with_and_without_b_frames(tmp_path, form, b_frames):
    stamps = range(40) if form == "avi" else range(0, 160, 4)
    path = write(tmp_path / "clip", form, numbered(40), stamps, tone(1.6), video_options=dict(bf=b_frames, g="8"))
    times = frame_times(path)
    assert len(times) == 40
    # libavformat's AVI writer holds the first frame for two more
    np.testing.assert_allclose(np.diff(times)[1 if form == "avi" else 0 :], 0.04, atol=1e-3)
    for order in ([0, 39, 17, 3, 4, 25], range(40)):
        assert numbers_of(read_frames(path, times[list(order)])[0]) == list(order)


def test_open_groups_of_pictures(tmp_path):
    options = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=10:min-keyint=10:scenecut=0"}
    path = write(tmp_path / "open.mp4", "mp4", textured(60), range(0, 240, 4), video_options=options)
    in_order = decoded_in_order(path)
    for i in range(60):
        assert np.array_equal(read_frames(path, [i * 0.04])[0][0], in_order[i]), i


def test_variable_frame_rate(tmp_path):
    stamps = [0, 3, 4, 50, 52, 150, 151, 230]
    path = write(tmp_path / "vfr.mp4", "mp4", numbered(8), stamps)
    np.testing.assert_allclose(frame_times(path), np.array(stamps) / 100, atol=1e-4)
    asked = np.linspace(0, 2.4, 49)
    shown = [max(i for i, stamp in enumerate(stamps) if stamp / 100 <= t + 1e-6) for t in asked]
    assert numbers_of(read_frames(path, asked)[0]) == shown


def test_one_single_frame(tmp_path):
    write_clip(tmp_path / "one.mp4", numbered(1), 25)
    assert frame_times(tmp_path / "one.mp4").tolist() == [0.0]
    assert numbers_of(read_frames(tmp_path / "one.mp4", [0, 5])[0]) == [0, 0]


def test_a_jump_gives_the_same_picture_as_decoding_in_order(tmp_path):
    path = write(tmp_path / "clip.mp4", "mp4", textured(60), range(0, 240, 4), video_options=dict(g="10"))
    in_order = decoded_in_order(path)
    for i in (59, 0, 33, 10, 9):
        assert np.array_equal(read_frames(path, [i * 0.04])[0][0], in_order[i])


def test_a_jump_into_intra_refresh_is_no_place_to_start(tmp_path):
    options = {"x264-params": "keyint=20:intra-refresh=1:bframes=0"}
    frames = [np.tile(frame, (1, 4, 1)) for frame in textured(100)]
    path = write(tmp_path / "refresh.mp4", "mp4", frames, range(0, 400, 4), video_options=options)
    in_order = decoded_in_order(path)
    for i in range(60, 100, 3):
        assert np.array_equal(read_frames(path, [i * 0.04])[0][0], in_order[i]), i


@pytest.mark.parametrize("keys", [20, 250])
def test_a_cut_that_leaves_the_key_frame_hidden_shows_all_other_frames(tmp_path, keys):
    """As ``ffmpeg -ss 1 -c copy`` cuts: packets from the key frame on, of which an edit list hides some."""
    options = {"x264-params": f"keyint={keys}:min-keyint={keys}:scenecut=0:bframes=2"}
    whole = write(tmp_path / "whole.mp4", "mp4", textured(60), range(0, 240, 4), video_options=options)
    path = tmp_path / "cut.mp4"
    with av.open(str(whole)) as given, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        given.seek(1_000_000)
        for packet in given.demux(video=0):
            if packet.dts is not None:
                shift = round(1 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                container.mux(packet)
    in_order, times = decoded_in_order(path), frame_times(path)
    np.testing.assert_allclose(times, np.arange(35) * 0.04, atol=1e-3)
    for i in range(35):
        assert np.array_equal(read_frames(path, [times[i]])[0][0], in_order[i]), i


@pytest.mark.parametrize("name", ["with_sound.avi", "silent.mp4"])
def test_real_clips_give_the_kth_decoded_frame(shared_data, name):
    path = shared_data / "clips" / name
    in_order = decoded_in_order(path)
    times = frame_times(path)
    assert len(times) == len(in_order) and (np.diff(times) > 0).all()
    chosen = [5, 6, 7, 8, 99, len(times) - 1]
    for i, picture in zip(chosen, read_frames(path, times[chosen])[0]):
        assert np.array_equal(picture, in_order[i])


def test_sound_comes_back_as_written(tmp_path):
    write_wav(tmp_path / "a.wav", tone(1), RATE)
    sound, rate = read_sound(tmp_path / "a.wav")
    assert rate == RATE and sound.dtype == np.float32
    np.testing.assert_allclose(sound, tone(1), atol=2**-15)


def test_sound_of_a_clip_has_its_pitch_and_place(clip):
    sound, _ = read_sound(clip)
    assert len(sound) == 5 * RATE
    assert np.abs(sound[2000:70000] - tone(5)[2000:70000]).max() < 0.05


@pytest.mark.parametrize("rate", [None, 8000, 22050, 44100])
@pytest.mark.parametrize("form", CONTAINERS)
def test_a_window_of_sound_is_a_part_of_the_whole(tmp_path, form, rate):
    rng = np.random.default_rng(0)
    sound = tone(4) + 0.1 * rng.standard_normal(4 * RATE).astype(np.float32)
    stamps = range(100) if form == "avi" else range(0, 400, 4)
    path = write(tmp_path / "clip", form, numbered(50) * 2, stamps, sound)
    whole, found = read_sound(path, sample_rate=rate)
    for start in (0.0, 0.73, 1.5, 2.2501):
        part, _ = read_sound(path, start, 1.0, rate)
        assert len(part) == round(found * 1.0)
        first = round(start * found)
        np.testing.assert_allclose(part, whole[first : first + len(part)], atol=1e-4)


@pytest.mark.parametrize(("form", "codec"), [("mpeg", "mp2"), ("ogg", "flac")])
def test_a_jump_that_lands_within_a_frame_of_sound_damages_nothing(tmp_path, form, codec):
    noise = 0.1 * np.random.default_rng(0).standard_normal(12 * RATE).astype(np.float32)
    path = write_sound(tmp_path / "clip", form, codec, tone(12) + noise)
    whole, rate = read_sound(path)
    for start in (0.92, 3.88, 10.91):
        first = round(start * rate)
        np.testing.assert_allclose(read_sound(path, start, 1.0)[0], whole[first : first + rate], atol=1e-4)


def test_a_raw_stream_that_begins_quietly_is_not_truncated(tmp_path):
    """Its duration is guessed from the bit rate of its beginning: six times too long."""
    noise = 0.5 * np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
    path = write_sound(tmp_path / "a.aac", "adts", "aac", np.concatenate([np.zeros(3 * RATE, np.float32), noise]))
    whole, rate = read_sound(path)
    assert 6 <= len(whole) / rate < 6.2
    np.testing.assert_allclose(read_sound(path, 4.0, 1.0)[0], whole[4 * rate : 5 * rate], atol=1e-4)


def test_resampling_keeps_frequency_and_length(tmp_path):
    write_wav(tmp_path / "a.wav", tone(2, 44100), 44100)
    sound, rate = read_sound(tmp_path / "a.wav", sample_rate=8000)
    assert rate == 8000 and abs(len(sound) - 16000) <= 1
    np.testing.assert_allclose(sound[200:15000], tone(2, 8000)[200:15000], atol=0.01)


def test_every_sample_format_of_wav_is_read_at_its_own_scale(tmp_path):
    wanted = np.array([0.0, 0.5, -0.5, 0.25, -1.0])
    stored = {
        "u8": (wanted * 128 + 128, np.uint8, 1, 8),
        "s16": (wanted * 2**15, np.int16, 1, 16),
        "s24": (wanted * 2**23, np.int32, 1, 24),
        "s32": (wanted * 2**31, np.int32, 1, 32),
        "f32": (wanted, np.float32, 3, 32),
        "f64": (wanted, np.float64, 3, 64),
    }
    for name, (values, kind, tag, bits) in stored.items():
        path = write_pcm(tmp_path / f"{name}.wav", values.astype(kind)[:, None], tag, bits)
        np.testing.assert_allclose(read_sound(path)[0], wanted, atol=1e-6, err_msg=name)


def test_float_sound_beyond_full_scale_is_clipped(tmp_path):
    path = write_pcm(tmp_path / "loud.wav", np.array([[2.0], [-3.0], [0.5]], np.float32), 3, 32)
    assert read_sound(path)[0].tolist() == [1.0, -1.0, 0.5]


def test_sound_that_is_not_finite_is_damage(tmp_path):
    path = write_pcm(tmp_path / "nan.wav", np.array([[0.0], [np.nan]], np.float32), 3, 32)
    with pytest.raises(DamagedMedia, match="nan.wav.*not finite"):
        read_sound(path)


def test_stereo_is_averaged(tmp_path):
    both = np.stack([np.full(800, 0.5), np.full(800, -0.1)], 1).astype(np.float32)
    np.testing.assert_allclose(read_sound(write_pcm(tmp_path / "s.wav", both, 3, 32))[0], 0.2, atol=1e-6)


def test_sound_that_starts_late_keeps_its_place_beside_the_video(tmp_path):
    path = write(tmp_path / "late.mp4", "mp4", numbered(50), range(0, 200, 4), tone(1), sound_start=RATE)
    sound, _ = read_sound(path)
    assert not sound[: int(0.9 * RATE)].any()
    assert np.sqrt((sound[int(1.1 * RATE) : int(1.9 * RATE)] ** 2).mean()) == pytest.approx(0.5 / 2**0.5, rel=0.05)
    begin, end = sound_span(path)
    assert begin == pytest.approx(1, abs=0.07) and end == pytest.approx(2, abs=0.07)


def test_nothing_is_added_where_sound_ends(clip):
    sound, _ = read_sound(clip, start=4.5, duration=2.0)
    assert len(sound) == RATE // 2


def test_a_window_without_sound_is_refused(clip):
    with pytest.raises(EmptyStream, match="no sound between 7.000 s and 8.000 s; its sound ends at 5.000 s"):
        read_sound(clip, start=7, duration=1)


def test_a_window_with_less_than_one_sample_is_refused(tmp_path):
    write_wav(tmp_path / "a.wav", tone(1), RATE)
    with pytest.raises(EmptyStream, match="its sound ends at 1.000 s"):
        read_sound(tmp_path / "a.wav", 1 - 1e-5, 1.0)


def test_sound_after_the_window_tells_its_beginning(tmp_path):
    path = write(tmp_path / "late.mp4", "mp4", numbered(50), range(0, 200, 4), tone(1), sound_start=2 * RATE)
    with pytest.raises(EmptyStream, match=r"no sound between 0.000 s and 1.000 s; its sound begins at 1\.9"):
        read_sound(path, 0.0, 1.0)


def test_missing_streams_are_told(tmp_path):
    write_clip(tmp_path / "silent.mp4", numbered(5), 10)
    write_wav(tmp_path / "blind.wav", tone(1), RATE)
    with pytest.raises(NoStream, match="silent.mp4 has no audio stream"):
        read_sound(tmp_path / "silent.mp4")
    with pytest.raises(NoStream, match="silent.mp4 has no audio stream"):
        sound_span(tmp_path / "silent.mp4")
    for read in (frame_times, lambda path: read_frames(path, [0.0])):
        with pytest.raises(NoStream, match="blind.wav has no video stream"):
            read(tmp_path / "blind.wav")
    assert not probe(tmp_path / "silent.mp4").has_audio and not probe(tmp_path / "blind.wav").has_video


def test_zero_length_sound_is_empty(tmp_path):
    path = write_pcm(tmp_path / "empty.wav", np.zeros((0, 1), np.int16), 1, 16)
    for read in (read_sound, sound_span):
        with pytest.raises(EmptyStream, match="empty.wav"):
            read(path)


@pytest.mark.parametrize("form", ["matroska", "mpegts", "avi"])  # mp4 keeps no empty stream
def test_a_video_stream_without_frames_is_empty(tmp_path, form):
    path = write(tmp_path / "none", form, [], [], tone(1))
    with pytest.raises(EmptyStream, match="none has a video stream without a frame"):
        frame_times(path)


@pytest.mark.parametrize("form", CONTAINERS)
@pytest.mark.parametrize(("frames", "seconds"), [(10, 4), (60, 1)])
def test_streams_of_unequal_length_are_no_damage(tmp_path, form, frames, seconds):
    stamps = range(frames) if form == "avi" else range(0, 4 * frames, 4)
    path = write(tmp_path / "clip", form, numbered(frames), stamps, tone(seconds))
    assert len(frame_times(path)) == frames
    assert len(read_sound(path)[0]) == pytest.approx(seconds * RATE, abs=0.12 * RATE)
    assert np.diff(sound_span(path)) == pytest.approx(seconds, abs=0.12)


def test_a_process_forked_after_decoding_decodes(tmp_path):
    """PyAV 19 keeps the threads that convert a picture; those of a parent do not exist in a forked loader worker."""
    path = write(tmp_path / "clip.mp4", "mp4", numbered(3), range(0, 12, 4))
    times = frame_times(path)
    expected = read_frames(path, times)[0]
    child = multiprocessing.get_context("fork").Process(target=_decode_again, args=(path, times, expected))
    child.start()
    child.join(30)
    waits = child.is_alive()
    child.kill()
    assert not waits and child.exitcode == 0


def _decode_again(path, times, expected):
    assert all((x == y).all() for x, y in zip(read_frames(path, times)[0], expected, strict=True))


def test_a_missing_file_is_told(tmp_path):
    for read in (probe, frame_times, read_sound, sound_span, lambda path: read_frames(path, [0.0])):
        for path in (tmp_path / "absent.mp4", tmp_path):
            with pytest.raises(MissingFile, match=str(path)):
                read(path)


def test_what_the_system_refuses_is_no_damage(clip, monkeypatch):
    def refused(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(media, "open", refused, raising=False)
    for read in (probe, frame_times, read_sound):
        with pytest.raises(PermissionError, match="clip.mp4"):
            read(clip)


def test_a_colon_in_a_relative_path_is_no_protocol(clip, tmp_path, monkeypatch):
    (tmp_path / "12:30.mp4").write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(frame_times("12:30.mp4")) == 50


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MissingFile, match="pipe.mp4"):
        probe(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("content", [b"", b"not a video at all\n" * 50, bytes(4096)], ids=["empty", "text", "zeros"])
def test_what_is_no_media_file_is_damaged(tmp_path, content):
    (tmp_path / "x.mp4").write_bytes(content)
    for read in (probe, frame_times, read_sound):
        with pytest.raises(DamagedMedia, match="x.mp4"):
            read(tmp_path / "x.mp4")


@pytest.mark.parametrize("form", ["mp4", "matroska", "avi"])
@pytest.mark.parametrize("part", [0.05, 0.4, 0.8])
def test_a_truncated_file_is_damaged(tmp_path, form, part):
    stamps = range(50) if form == "avi" else range(0, 200, 4)
    whole = write(tmp_path / "whole", form, textured(50), stamps, tone(2), options=dict(movflags="+faststart"))
    path = cut(whole, part, tmp_path / "part")
    for read in (frame_times, lambda path: read_frames(path, [0.1]), read_sound):
        with pytest.raises(DamagedMedia, match="part"):
            read(path)


def test_an_mp4_without_its_index_is_damaged(clip, tmp_path):
    path = cut(clip, 0.7, tmp_path / "part.mp4")  # write_clip puts the index at the end
    for read in (probe, frame_times, read_sound):
        with pytest.raises(DamagedMedia, match="part.mp4"):
            read(path)


def test_a_truncated_wav_is_damaged_where_the_window_reaches_the_loss(tmp_path):
    write_wav(tmp_path / "whole.wav", tone(2), RATE)
    path = cut(tmp_path / "whole.wav", 0.5, tmp_path / "part.wav")
    with pytest.raises(DamagedMedia, match="part.wav is truncated"):
        read_sound(path)
    assert len(read_sound(path, 0.0, 0.25)[0]) == RATE // 4


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_a_wav_file_written_to_a_pipe_has_no_size(tmp_path, size):
    write_wav(tmp_path / "a.wav", tone(1), RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[40:44] = struct.pack("<I", size)
    content[4:8] = struct.pack("<I", min(size + 36, 2**32 - 1) if size else 0)
    (tmp_path / "a.wav").write_bytes(content)
    assert len(read_sound(tmp_path / "a.wav")[0]) == RATE


def test_a_frame_that_builds_on_damage_is_refused_and_others_are_not(tmp_path):
    path = write(tmp_path / "clip.mp4", "mp4", textured(60), range(0, 240, 4), video_options=dict(g="10"),
                 vcodec="mpeg4")
    with av.open(str(path)) as container:
        packet = next(p for p in container.demux(video=0) if p.pts is not None and float(p.pts * p.time_base) >= 0.99)
        place, size = packet.pos, packet.size
    content = bytearray(path.read_bytes())
    content[place + size // 4 : place + size // 2] = np.random.default_rng(0).bytes(size // 2 - size // 4)
    path.write_bytes(content)
    for t in (1.0, 1.08):  # frame 25 and one that follows it in its group 20..29
        with pytest.raises(DamagedMedia, match="clip.mp4 is damaged"):
            read_frames(path, [t])
    assert len(read_frames(path, [0.3, 0.9, 2.0])[0]) == 3


def test_a_key_frame_ends_damage_where_nothing_can_be_skipped(tmp_path):
    """AVI with B frames is decoded from its start: what comes before must not spoil what comes after."""
    path = write(tmp_path / "clip.avi", "avi", textured(60), range(60), tone(2.4), video_options=dict(g="10", bf="2"))
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        place, size = packets[25].pos + 8, packets[25].size  # behind the chunk's name and length
    content = bytearray(path.read_bytes())
    content[place + size // 4 : place + size] = b"\xff" * (size - size // 4)
    path.write_bytes(content)
    times = frame_times(path)
    with pytest.raises(DamagedMedia, match="clip.avi is damaged"):
        read_frames(path, times[20:30])
    assert len(read_frames(path, times[[3, 45, 59]])[0]) == 3


def test_a_hole_in_the_sound_is_damage(tmp_path):
    path = write_sound(tmp_path / "hole.mkv", "matroska", "pcm_s16le", tone(1), (0.0, 1.5))
    with pytest.raises(DamagedMedia, match="jumps by 0.500 s at 1.000 s"):
        read_sound(path)


def without_every(number, path, target):
    """The same packets but every ``number``-th of sound."""
    with av.open(str(path)) as given, av.open(str(target), "w", format="mp4") as container:
        streams = {stream.index: container.add_stream_from_template(stream) for stream in given.streams}
        heard = 0
        for packet in given.demux():
            heard += packet.stream.type == "audio"
            if packet.dts is not None and (packet.stream.type != "audio" or heard % number):
                packet.stream = streams[packet.stream.index]
                container.mux(packet)
    return target


@pytest.mark.parametrize("rate", [None, 22050])
def test_holes_that_a_player_bridges_leave_the_sound_beside_its_picture(tmp_path, rate):
    noise = 0.1 * np.random.default_rng(0).standard_normal(12 * RATE).astype(np.float32)
    intact = write(tmp_path / "intact.mp4", "mp4", numbered(60) * 5, range(0, 1200, 4), noise)
    holed = without_every(20, intact, tmp_path / "holed.mp4")
    expected, (whole, found) = read_sound(intact, sample_rate=rate)[0], read_sound(holed, sample_rate=rate)
    assert len(whole) == len(expected)
    differs = np.abs(whole - expected)
    assert 0 < np.mean(differs > 0.01) < 0.2  # 9 packets of 188, and each decoder's way back
    for start in (0.0, 3.21, 10.4):
        part, first = read_sound(holed, start, 1.5, rate)[0], round(start * found)
        np.testing.assert_allclose(part, whole[first : first + round(1.5 * found)], atol=1e-4)


def test_the_whole_sound_of_a_fragmented_file_lies_where_its_windows_do(tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
    path = write(tmp_path / "clip.mp4", "mp4", numbered(60), range(0, 240, 4), noise,
                 options=dict(movflags="frag_keyframe+empty_moov"))
    with av.open(str(path)) as container:
        stamps = [packet.pts for packet in container.demux(audio=0) if packet.pts is not None]
    assert stamps[1] - stamps[0] > 1024  # libavformat holds the first packet for longer
    whole, _ = read_sound(path)
    np.testing.assert_allclose(read_sound(path, 1.5, 1.0)[0], whole[round(1.5 * RATE) : round(2.5 * RATE)], atol=1e-4)


@pytest.mark.parametrize(("stamps", "length"), [(1.04 * np.arange(5), 5.16), (0.98 * np.arange(5), 5)])
def test_a_clock_that_runs_a_little_off_is_no_damage(tmp_path, stamps, length):
    path = write_sound(tmp_path / "off.mkv", "matroska", "pcm_s16le", tone(1), stamps)
    assert len(read_sound(path)[0]) == length * RATE


def test_a_single_stamp_that_is_late_moves_nothing(tmp_path):
    path = write_sound(tmp_path / "late.mkv", "matroska", "pcm_s16le", tone(1), (0, 1, 2.03, 3, 4))
    np.testing.assert_allclose(read_sound(path)[0], np.tile(tone(1), 5), atol=2**-14)


def test_stamps_in_whole_milliseconds_add_and_take_away_nothing(tmp_path):
    path = write_sound(tmp_path / "rounded.mkv", "matroska", "pcm_s16le", tone(0.0235), 0.0235 * np.arange(200))
    assert len(read_sound(path)[0]) == 200 * round(0.0235 * RATE)


def test_written_clips_are_the_same_bytes_each_time(tmp_path):
    for name in "ab":
        write_clip(tmp_path / name, textured(10), 25, tone(0.4), RATE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("change", "told"), [
    (dict(frames=[]), "no frame"),
    (dict(frames=[np.zeros((15, 16, 3), np.uint8)]), "must be even, got 15x16"),
    (dict(frames=[np.zeros((16, 16, 3), np.uint8), np.zeros((16, 18, 3), np.uint8)]), r"frame 1 is \(16, 18, 3\)"),
    (dict(frames=[np.zeros((16, 16, 3), np.float32)]), "float32, expected"),
    (dict(sound=tone(1)), "both sound and sample_rate"),
], ids=["none", "odd", "sizes", "type", "rate"])
def test_write_clip_refuses_what_it_cannot_store(tmp_path, change, told):
    with pytest.raises(ValueError, match=told):
        write_clip(tmp_path / "x.mp4", **dict(frames=numbered(2), fps=10) | change)


def test_grey_levels_tell_frames_apart():
    assert all(a + 1 == b for a, b in pairwise(numbers_of(numbered(60))))


def test_a_codec_that_nobody_knows_is_named(tmp_path):
    """Found by fuzzing: FFmpeg then gives a stream without a decoder."""
    path = tmp_path / "odd.wav"
    write_wav(path, np.zeros(160), 16000)
    data = bytearray(path.read_bytes())
    assert data[20:22] == b"\x01\x00"  # the format tag: PCM
    data[20:22] = b"\x77\x77"
    path.write_bytes(data)
    with pytest.raises(DamagedMedia, match=r"odd\.wav.*no decoder for its audio \(stream 0\)"):
        read_sound(path)
