"""report, show and decode, from the command line, on real tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import real_data
from conftest import photo_members, tar_bytes
from PIL import Image
from real_data import DEMO_PHOTOS, HOSTILE_KEY, hostile_tar, write_real_data
from synthetic_tokens import write_synthetic
from typer.testing import CliRunner, Result

from jobs.cli import app
from schemas.records import Clip, Reject
from tatok.lookup import find_rows, read_rows
from tatok.parts import TokenizedData
from tatok.rows import token_sequences
from tatok.tokenizer import Tokenizer


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def rewrite(data_set: Path, column: str, value: object) -> None:
    """Give every row of a data set one value in a column."""
    for part in (data_set / "data").iterdir():
        table, footer = pq.read_table(part), pq.read_metadata(part).metadata
        number = table.schema.get_field_index(column)
        field = table.schema.field(number)
        table = table.set_column(number, field, pa.array([value] * len(table), type=field.type))
        pq.write_table(table.replace_schema_metadata(footer), part)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of the demo photos, and of a hostile tar, at 128 pixels."""
    folder = tmp_path_factory.mktemp("real")
    write_real_data(str(folder / "set"), (DEMO_PHOTOS, hostile_tar(folder / "source")), image_size=128)
    return folder / "set"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_report(real: Path, here: Path) -> None:
    result = invoke("report", real, "--title", "Nine photos")
    assert result.exit_code == 0, result.output
    page = here / "report.html"
    html = page.read_text(encoding="utf-8")
    assert f"report.html: {page.stat().st_size:,} bytes, 10 images, 10 of them pictured" in result.output
    assert "<title>Nine photos</title>" in html
    assert html.count("data:image/") == 10 * 4
    assert "no original" not in html
    assert "not_an_image" in html
    assert "images a second" in html
    assert page.stat().st_size < 600_000
    assert [path.name for path in here.iterdir()] == ["report.html"]


def test_report_without_sources_or_checkpoint(here: Path) -> None:
    source = here / "photos.tar"
    whole = tar_bytes(photo_members(0, 6))
    source.write_bytes(whole)
    write_real_data(str(here / "set"), (str(source),), image_size=64)
    source.unlink()
    result = invoke("report", here / "set", "-o", "deep/er/page.html")
    assert result.exit_code == 0, result.output
    html = (here / "deep/er/page.html").read_text(encoding="utf-8")
    assert html.count("no original: cannot open") == 6
    assert html.count("data:image/") == 6 * 3
    run = json.loads((here / "set" / "run.json").read_text())
    run["fingerprint"]["tokenizer.weights_sha256"] = "f" * 64
    (here / "set" / "run.json").write_text(json.dumps(run))
    result = invoke("report", here / "set")
    assert result.exit_code == 0, result.output
    assert "no pictures" in result.output
    assert "made with the weights ffffffffffffffff" in result.output
    assert "data:image/" not in (here / "report.html").read_text(encoding="utf-8")
    source.write_bytes(whole)
    result = invoke("report", here / "set")
    assert "warning: no reconstructions" in result.output
    assert (here / "report.html").read_text(encoding="utf-8").count("data:image/") == 6 * 3
    wrong = invoke("report", here / "set", "--checkpoint", here / "nowhere")
    assert wrong.exit_code == 1
    assert "--checkpoint" in wrong.output


def test_report_without_pictures(here: Path) -> None:
    write_synthetic(str(here / "set"), 500, rejects_per_part=4)
    shutil.rmtree(here / "set" / "rejects")
    result = invoke("report", here / "set", "--no-pictures")
    assert result.exit_code == 0, result.output
    assert "no examples of rejects" in result.output
    assert "left out by --no-pictures" in (here / "report.html").read_text(encoding="utf-8")
    assert invoke("report", here / "nothing").exit_code == 1
    (here / "file").touch()
    refused = invoke("report", here / "set", "--no-pictures", "-o", here / "file" / "page.html")
    assert refused.exit_code == 1
    assert "choose another place with -o" in refused.output


def test_show(real: Path, here: Path) -> None:
    result = invoke("show", real, "coffee")
    assert result.exit_code == 0, result.output
    assert "coffee-tokens.png" in result.output
    picture = np.asarray(Image.open(here / "coffee-tokens.png"))
    [row] = read_rows(TokenizedData.open(real), find_rows(TokenizedData.open(real), ["coffee"])).to_pylist()
    # The first panel is the original at twice its 128 pixels, the last the reconstruction.
    top = picture.shape[0] - 256 - 12
    original, rebuilt = picture[top : top + 256, 12:268], picture[top : top + 256, -268:-12]
    assert np.abs(original.astype(int) - rebuilt).mean() < 40
    assert np.abs(original.astype(int) - rebuilt[::-1]).mean() > 40
    assert invoke("show", real, row["sample_id"][:10], "-o", "by-id.png").exit_code == 0
    assert (np.asarray(Image.open(here / "by-id.png")) == picture).all()


def test_show_without_the_original(real: Path, here: Path) -> None:
    moved = here / "set"
    shutil.copytree(real, moved)
    rewrite(moved, "sha256", "0" * 64)
    result = invoke("show", moved, "coffee")
    assert result.exit_code == 0, result.output
    assert "no original: the source holds other bytes" in result.output
    assert (here / "coffee-tokens.png").exists()


def test_buckets(s3_bucket: str, here: Path) -> None:
    fs = fsspec.filesystem("s3")
    fs.pipe_file(f"{s3_bucket}/pictures/photos.tar", tar_bytes(photo_members(0, 3)))
    output = f"s3://{s3_bucket}/pictures/set"
    write_real_data(output, (f"s3://{s3_bucket}/pictures/photos.tar",), image_size=64)
    for arguments in (["report", output], ["show", output, "photo-0001"], ["decode", output, "photo-0002", "-o", "."]):
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output
        assert "no original" not in result.output
    assert (here / "report.html").read_text(encoding="utf-8").count("data:image/") == 3 * 4
    assert (here / "photo-0001-tokens.png").exists()
    assert (here / "photo-0002.png").exists()


def test_show_names_what_it_cannot_find(real: Path) -> None:
    result = invoke("show", real, "cofee")
    assert result.exit_code == 1
    assert "close to it: 'coffee'" in result.output


def test_decode(real: Path, here: Path) -> None:
    result = invoke("decode", real, "coffee", "astronaut", "coffee", HOSTILE_KEY, "-o", "pictures")
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (here / "pictures").iterdir())
    assert names == ["astronaut.png", "coffee.png", "img_src_x_onerror_alert_1.png"]
    data = TokenizedData.open(real)
    sequences = token_sequences(read_rows(data, find_rows(data, ["astronaut", "coffee"])))
    expected = Tokenizer.load(device="cpu").decode(sequences).numpy()
    for name, pixels in zip(("astronaut", "coffee"), expected, strict=True):
        written = np.asarray(Image.open(here / "pictures" / f"{name}.png"))
        np.testing.assert_array_equal(written.transpose(2, 0, 1), pixels)


def test_keys_that_would_be_one_file(here: Path) -> None:
    photos = photo_members(0, 3)
    keys = ["deep/a b.jpg", "deep/a_b.jpg", "../../etc/passwd.jpg"]
    members = [(key, photos[4 * i][1]) for i, key in enumerate(keys)]
    source = here / "photos.tar"
    source.write_bytes(tar_bytes(members))
    write_real_data(str(here / "set"), (str(source),), image_size=64)
    stored = TokenizedData.open(here / "set").read_all(["key"]).column("key").to_pylist()
    result = invoke("decode", here / "set", *stored, "-o", here / "out")
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (here / "out").iterdir())
    assert [name.partition("-")[0] for name in names] == ["deep_a_b", "deep_a_b", "etc_passwd.png"]
    assert len(set(names)) == 3


@pytest.mark.parametrize("command", [["show"], ["decode", "-o", "out"]])
def test_another_checkpoint_is_refused(command: list[str], real: Path, here: Path) -> None:
    changed = here / "set"
    shutil.copytree(real, changed)
    run = json.loads((changed / "run.json").read_text())
    run["fingerprint"]["tokenizer.weights_sha256"] = "f" * 64
    (changed / "run.json").write_text(json.dumps(run))
    result = invoke(*command, changed, "coffee")
    assert result.exit_code == 1
    assert "ffffffffffffffff" in result.output
    assert "--checkpoint" in result.output
    assert not (here / "out").exists()


def test_a_clip_decodes_to_a_strip_of_its_frames(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode_sample = real_data.decode_sample

    def mirrored_too(*arguments: Any) -> Iterator[Clip | Reject]:
        for clip in decode_sample(*arguments):
            assert isinstance(clip, Clip)
            yield replace(clip, pixels=np.concatenate([clip.pixels, clip.pixels[..., ::-1]]))

    monkeypatch.setattr(real_data, "decode_sample", mirrored_too)
    source = here / "photos.tar"
    source.write_bytes(tar_bytes(photo_members(0, 3)[:1]))
    write_real_data(str(here / "set"), (str(source),), image_size=64)
    [key] = TokenizedData.open(here / "set").read_all(["key"]).column("key").to_pylist()
    result = invoke("decode", here / "set", key, "-o", here / "out")
    assert result.exit_code == 0, result.output
    [sequence] = token_sequences(TokenizedData.open(here / "set").read_all())
    assert sequence.grid.frames == 2
    first, second = Tokenizer.load(device="cpu").decode_clips([sequence])[0].numpy()
    [picture] = (here / "out").iterdir()
    np.testing.assert_array_equal(np.asarray(Image.open(picture)).transpose(2, 0, 1), np.dstack([first, second]))
    shown = invoke("show", here / "set", key)
    assert shown.exit_code == 1
    assert "is a clip of 2 token frames" in shown.output
