"""What a run learns from: folders and shards, captions, and what is said of footage that cannot be used."""

import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from vdmini.captions import captions_of, footage, need_captions
from vdmini.clips import video_files, write_clip
from vdmini.core import BadInput
from vdmini.material import folder_material
from vdmini.recipe import encoded
from vdmini.teachers import load_teacher
from vdmini.train import vdmini_encode, vdmini_train


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("tiny-svd")


@pytest.fixture
def clips(tmp_path) -> Path:
    "a: 8 frames, b: 17, c: 5; nothing is said of c."
    g = torch.Generator().manual_seed(0)
    for name, frames in (("a", 8), ("b", 17), ("c", 5)):
        write_clip(torch.rand(frames, 3, 64, 64, generator=g), tmp_path / "clips" / f"{name}.mp4")
    (tmp_path / "clips" / "a.txt").write_text("rain\n")
    (tmp_path / "clips" / "b.txt").write_text("snow\n")
    return tmp_path / "clips"


def shards(clips: Path, *contents: str) -> str:
    "The pattern of shards with these files, one shard for each list of names."
    for i, names in enumerate(contents):
        with tarfile.open(clips.parent / f"s-{i}.tar", "w") as tar:
            for name in names.split():
                tar.add(clips / name, name)
    return str(clips.parent / f"s-{{0..{len(contents) - 1}}}.tar")


# --- captions


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("name,columns", [("captions", ("file", "caption")), ("metadata", ("file_name", "text"))])
def test_a_table_of_captions(clips, kind, name, columns):
    table = pd.DataFrame([("a.mp4", "sun"), ("c.mp4", "wind, and\nmore")], columns=columns)
    path = clips / f"{name}.{kind}"
    if kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        getattr(table, f"to_{kind}")(path, index=False)
    assert captions_of(clips, video_files(clips)) == ["rain", "snow", "wind, and\nmore"]  # a text beside a clip has the last word
    need_captions(clips)


def test_tables_that_cannot_be_used(clips):
    (clips / "captions.csv").write_text("path,words\na.mp4,rain\n")
    with pytest.raises(BadInput, match="captions.csv has the columns path, words; expected file and caption"):
        need_captions(clips)
    (clips / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(BadInput, match="2 tables of captions: captions.csv, metadata.jsonl; expected one"):
        need_captions(clips)
    (clips / "captions.csv").unlink()
    (clips / "metadata.jsonl").write_text("{not json\n")
    with pytest.raises(BadInput, match="metadata.jsonl is no table of captions: "):
        need_captions(clips)


def test_captions_missing_where_a_text_is_needed(teacher, clips):
    told_by_text = replace(
        teacher, family=replace(teacher.family, sampler=replace(teacher.family.sampler, takes=("frames", "motion", "prompts")))
    )
    with pytest.raises(
        BadInput, match=r"1 of 3 videos have no caption: c.mp4; expected a .txt beside each, or a table captions.jsonl"
    ):
        encoded(told_by_text, str(clips), 9, progress=False)
    with pytest.raises(BadInput, match="1 of 2 videos have no caption: c; expected"):
        encoded(told_by_text, shards(clips, "a.mp4 a.txt", "c.mp4"), 9, progress=False)
    (clips / "c.txt").write_text("wind")
    assert encoded(told_by_text, str(clips), 9, progress=False).captions == ["rain", "snow", "snow"]  # c is too short


# --- shards


def test_shards_and_folder_give_the_same(teacher, clips):
    pattern = shards(clips, "a.mp4 a.txt b.mp4", "c.mp4")
    (clips / "b.json").write_text(json.dumps(dict(caption="snow", fps=8)))
    pattern = shards(clips, "a.mp4 a.txt b.json b.mp4", "c.mp4")
    one, two = folder_material(teacher, clips), folder_material(teacher, pattern)
    assert torch.equal(one.clips, two.clips) and torch.equal(one.motion, two.motion)
    assert one.captions == two.captions == ["rain", "snow", "snow"]
    assert one.source["skipped"] == [["c.mp4", "too short, 5 frames of 8"]]
    assert two.source["skipped"] == [["s-1.tar/c.mp4", "too short, 5 frames of 8"]]
    assert two.source["files"] == ["s-0.tar/a.mp4", "s-0.tar/b.mp4"]
    assert [o.starts for o in footage(pattern, 8, 16, limit=2)] == [[0], [0]]


def test_shards_are_encoded_with_their_captions(teacher, clips, tmp_path, capsys):
    out = tmp_path / "latents.safetensors"
    vdmini_encode("tiny-svd", shards(clips, "a.mp4 a.txt b.mp4", "c.mp4"), out=str(out))
    said = capsys.readouterr()
    assert (
        "3 clips as latents (8, 4, 8, 8)" in said.out and "1 files skipped: s-1.tar/c.mp4 (too short, 5 frames of 8)" in said.err
    )
    held, folder = encoded(teacher, None, 9, out), encoded(teacher, str(clips), 9, batch=2, progress=False)
    assert held.captions == ["rain", "", ""] and len(held.told["image"]) == len(held) == 3
    torch.testing.assert_close(held.x_0, folder.x_0)
    assert encoded(teacher, None, 2, out).captions == ["rain", ""]


def test_shards_that_cannot_be_read(clips, monkeypatch):
    pattern = shards(clips, "a.txt")
    with pytest.raises(BadInput, match="no video in it"):
        next(footage(pattern, 8, 16))
    shard = clips.parent / "s-0.tar"
    shards(clips, "a.mp4 b.mp4")
    shard.write_bytes(shard.read_bytes()[:1500])
    with pytest.raises(BadInput, match=r"a shard cannot be read \("):
        [*footage(pattern, 8, 16)]
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(BadInput, match="webdataset, which is not installed: pip install vdmini.shards."):
        next(footage(pattern, 8, 16))


# --- footage that no run can learn from


def refused(tmp_path: Path, capsys, data) -> str:
    with pytest.raises(SystemExit) as e:
        vdmini_train("tiny-svd", data=str(data), out=str(tmp_path / "run"))
    said = capsys.readouterr().err.splitlines()
    assert e.value.code == 2 and len(said) == 1
    assert not (tmp_path / "run" / "run.json").exists()  # the folder is free for another try
    return said[0]


def test_a_run_without_a_clip_is_refused(clips, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    assert "none: no video in it (.avi" in refused(tmp_path, capsys, tmp_path / "none")
    assert "gone: no such file or folder" in refused(tmp_path, capsys, tmp_path / "gone")
    assert "1 of 1 shards are not there" in refused(tmp_path, capsys, tmp_path / "gone.tar")
    for name in "ab":
        (clips / f"{name}.mp4").unlink()
    only = "no usable clip of 8 frames; c.mp4 (too short, 5 frames of 8)"
    assert only in refused(tmp_path, capsys, clips)
    assert only.replace("c.mp4", "s-0.tar/c.mp4") in refused(tmp_path, capsys, shards(clips, "c.mp4"))
