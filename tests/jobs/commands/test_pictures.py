"""report, show and decode, from the command line, on real tokens."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
from PIL import Image, ImageSequence
from typer.testing import CliRunner, Result

from tatok.dataset.lookup import find_rows, read_rows
from tatok.dataset.parts import TokenizedData
from tatok.dataset.rows import token_sequences
from tatok.jobs.cli import app
from tatok.jobs.pictures import draw_row
from tatok.report.rebuilt import tokenizer_of
from tatok.schemas.errors import ConfigError
from tatok.schemas.preprocessing import Video
from tatok.tokenizer.tokenizer import Tokenizer
from tests.support.photos import photo_members, tar_bytes
from tests.support.real_data import DEMO_PHOTOS, HOSTILE_KEY, hostile_tar, rewrite_column, write_real_data
from tests.support.synthetic_tokens import write_synthetic
from tests.support.synthetic_videos import video_bytes

CLIP_FRAMES = 5


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


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
    run = json.loads((here / "set" / "_run.json").read_text())
    run["fingerprint"]["tokenizer.weights_sha256"] = "f" * 64
    (here / "set" / "_run.json").write_text(json.dumps(run))
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
    shutil.rmtree(here / "set" / "_rejects")
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


def test_python_draws_a_row_as_the_command_does(real: Path, here: Path) -> None:
    data = TokenizedData.open(real)
    drawn = draw_row(data, "coffee", tokenizer_of(data, device="cpu"))
    assert (drawn.name, drawn.why_no_original, drawn.moving) == ("coffee-tokens", None, None)
    assert invoke("show", real, "coffee", "--device", "cpu").exit_code == 0
    assert (np.asarray(Image.open(here / "coffee-tokens.png")) == np.asarray(drawn.picture)).all()
    with pytest.raises(ConfigError, match="nothing-of-that-name"):
        draw_row(data, "nothing-of-that-name", tokenizer_of(data, device="cpu"))


def test_several_keys_make_one_sheet(real: Path, here: Path) -> None:
    result = invoke("show", real, "coffee", "grass", "coffee", HOSTILE_KEY, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert [path.name for path in here.iterdir()] == ["coffee-and-2-more-tokens.png"]
    lines = result.stdout.splitlines()
    assert lines[0] == "coffee-and-2-more-tokens.png: 3 images"
    assert [line.partition(":")[0].strip() for line in lines[1:]] == ["coffee", "grass", HOSTILE_KEY]
    sheet = np.asarray(Image.open(here / "coffee-and-2-more-tokens.png")).astype(int)
    data, headings, top = TokenizedData.open(real), 46, 46
    tokenizer = tokenizer_of(data, device="cpu")
    for key in ("coffee", "grass", HOSTILE_KEY):
        alone = np.asarray(draw_row(data, key, tokenizer).picture)[headings:].astype(int)
        difference = np.abs(sheet[top : top + len(alone)] - alone)
        difference[:, 280:536] = 0  # the heat map: all of a sheet share one scale
        assert difference.max() <= 2  # convolutions round by the size of the batch
        top += len(alone)
    assert top == len(sheet)


def test_a_sheet_that_is_asked_too_much(real: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke("show", real, "cofee", "coffee", "zzzzzz", "-o", "sheet.png")
    assert result.exit_code == 1
    assert "no rows with these 2 keys or sample ids" in result.output
    assert "'cofee'; close to it: 'coffee'" in result.output
    assert "'zzzzzz'" in result.output
    monkeypatch.setattr("tatok.jobs.pictures.MOST_PICTURE_ROWS", 2)
    result = invoke("show", real, "coffee", "astronaut", "grass", "-o", "sheet.png")
    assert result.exit_code == 1
    assert "3 keys make 3 rows of pictures, and one sheet holds 2" in result.output
    assert "draw the first 2 at once" in result.output
    assert not list(here.iterdir())


def test_worth_is_stored_and_drawn_where_it_is_asked_for(real: Path, here: Path) -> None:
    write_real_data(str(here / "set"), (DEMO_PHOTOS,), image_size=128, patch_worth=True)
    data, plain = TokenizedData.open(str(here / "set")), TokenizedData.open(str(real))
    table = data.read_all(data.schema.names)
    assert set(data.schema.names) - set(plain.schema.names) == {"patch_worth_bits"}
    rows = plain.read_all(plain.schema.names).filter(pa.compute.is_in(plain.read_all(["key"])["key"], table["key"]))
    assert table.drop(["patch_worth_bits"]).equals(rows)
    for sequence in token_sequences(table):
        assert sequence.entropy.patch_worth_bits_N is not None
        assert sequence.entropy.patch_worth_bits_N.nonzero()[0].tolist() == sequence.positions.tolist()
    assert all(sequence.entropy.patch_worth_bits_N is None for sequence in token_sequences(rows))

    for command in (("verify", here / "set"), ("verify", real)):
        assert invoke(*command).exit_code == 0
    query = (
        "SELECT sum(len(list_filter(patch_worth_bits, lambda w: w > 0))) = sum(num_patch_tokens) AS same FROM tokens"
    )
    assert "true" in invoke("query", here / "set", query).output.lower()
    pictures = []
    for number, options in enumerate(((), ("--heat", "entropy"), ("--heat", "worth"))):
        assert invoke("show", here / "set", "coffee", "-o", f"{number}.png", *options).exit_code == 0
        pictures.append(np.asarray(Image.open(here / f"{number}.png")))
    assert np.array_equal(pictures[0], pictures[2])
    assert not np.array_equal(pictures[0], pictures[1])
    assert invoke("show", real, "coffee", "--heat", "worth").exit_code == 0  # and says that there is none
    for folder, words in ((here / "set", "above the threshold (outlined) are kept"), (real, "Worth is not stored")):
        assert invoke("report", folder).exit_code == 0
        assert words in (here / "report.html").read_text(encoding="utf-8")


def test_show_without_the_original(real: Path, here: Path) -> None:
    moved = here / "set"
    shutil.copytree(real, moved)
    rewrite_column(moved, "sha256", "0" * 64)
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
    run = json.loads((changed / "_run.json").read_text())
    run["fingerprint"]["tokenizer.weights_sha256"] = "f" * 64
    (changed / "_run.json").write_text(json.dumps(run))
    result = invoke(*command, changed, "coffee")
    assert result.exit_code == 1
    assert "ffffffffffffffff" in result.output
    assert "--checkpoint" in result.output
    assert not (here / "out").exists()


def moving_bar() -> list[np.ndarray]:
    """Ten pictures, uint8 [64, 64, 3], whose every frame differs much from the others, so that it costs tokens."""
    first = np.full((64, 64, 3), (30, 40, 120), np.uint8)
    first[:, :24] = (240, 220, 60)
    return [np.roll(first, 6 * number, axis=1) for number in range(10)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of two clips of one moving video, each of five frames, at 64 pixels."""
    folder = tmp_path_factory.mktemp("clips")
    video = video_bytes(10, pictures=moving_bar(), width=64)
    (folder / "clips.tar").write_bytes(tar_bytes([("bar.mp4", video)]))
    write_real_data(
        str(folder / "set"), (f"{folder}/clips.tar",), image_size=64, video=Video(frames_per_clip=CLIP_FRAMES)
    )
    return folder / "set"


def clip_ids(data_set: Path) -> list[str]:
    rows = TokenizedData.open(data_set).read_all(["sample_id", "clip_index"]).to_pylist()
    assert [row["clip_index"] for row in rows] == [0, 1]
    return [row["sample_id"] for row in rows]


def decoded_clips(data_set: Path, *, together: bool = True) -> np.ndarray:
    """uint8 [2, T, 3, H, W], decoded in one batch or each clip alone: convolutions round by the size of the batch."""
    tokenizer, sequences = Tokenizer.load(device="cpu"), token_sequences(TokenizedData.open(data_set).read_all())
    batches = [sequences] if together else [[sequence] for sequence in sequences]
    pixels: np.ndarray = np.concatenate([tokenizer.decode_clips(batch).numpy() for batch in batches])
    assert pixels.shape == (2, CLIP_FRAMES, 3, 64, 64)
    return pixels


def moving(path: Path) -> tuple[list[np.ndarray], list[int]]:
    """The frames of an animated picture, uint8 [H, W, 3], and how long each is shown, in milliseconds."""
    frames, durations_ms = [], []
    with Image.open(path) as picture:
        for frame in ImageSequence.Iterator(picture):
            frames.append(np.asarray(frame.convert("RGB")))
            durations_ms.append(frame.info["duration"])
    return frames, durations_ms


def test_a_clip_decodes_to_a_strip_of_its_frames_and_a_moving_picture(clips: Path, here: Path) -> None:
    ids = clip_ids(clips)
    result = invoke("decode", clips, *ids, "-o", "out")
    assert result.exit_code == 0, result.output
    assert len(list((here / "out").iterdir())) == 4
    for sample_id, expected in zip(ids, decoded_clips(clips), strict=True):
        strip = np.asarray(Image.open(here / "out" / f"bar-{sample_id[:16]}.png"))
        np.testing.assert_array_equal(strip.transpose(2, 0, 1), np.dstack(list(expected)))
        frames, durations_ms = moving(here / "out" / f"bar-{sample_id[:16]}-moving.webp")
        assert durations_ms == [40] * CLIP_FRAMES
        for frame, pixels in zip(frames, expected, strict=True):
            # WebP halves the colours' resolution, but hardly changes the brightness.
            assert np.abs(frame.mean(axis=2) - pixels.mean(axis=0)).mean() < 8


def test_show_draws_a_clip_frame_by_frame_and_moving(clips: Path, here: Path) -> None:
    result = invoke("show", clips, clip_ids(clips)[1], "--frames", 3)
    assert result.exit_code == 0, result.output
    assert "no original" not in result.output
    assert f"{CLIP_FRAMES} frames: original, entropy, kept patches, rebuilt" in result.output
    assert sorted(path.name for path in here.iterdir()) == ["bar-1-tokens-moving.webp", "bar-1-tokens.png"]
    side, line, sources = 256, 26 + 256 + 12, moving_bar()
    expected = decoded_clips(clips, together=False)[1]
    picture = np.asarray(Image.open(here / "bar-1-tokens.png"))
    for row, frame in enumerate((4, 2, 0)):  # from below
        bottom = len(picture) - 12 - row * line
        rebuilt = picture[bottom - side : bottom, -12 - side : -12]
        np.testing.assert_array_equal(rebuilt[2::4, 2::4], expected[frame].transpose(1, 2, 0))
        original = picture[bottom - side : bottom, 12 : 12 + side][2::4, 2::4].astype(int)
        distances = [np.abs(original - source).mean() for source in sources]
        assert np.argmin(distances) == CLIP_FRAMES + frame
    frames, durations_ms = moving(here / "bar-1-tokens-moving.webp")
    assert durations_ms == [40] * CLIP_FRAMES
    for number, frame in enumerate(frames):
        assert frame.shape == (side, 4 * side, 3)
        shown = frame[2::4, 2 : 2 + side : 4].astype(int)
        assert np.argmin([np.abs(shown - source).mean() for source in sources]) == CLIP_FRAMES + number


def test_clips_on_one_sheet_move_in_files_of_their_own(clips: Path, here: Path) -> None:
    result = invoke("show", clips, *clip_ids(clips), "--frames", 2, "-o", "both.png")
    assert (result.exit_code, result.stdout.splitlines()[:1]) == (0, ["both.png: 2 clips"]), result.output
    names = ["bar-1-tokens-moving.webp", "bar-tokens-moving.webp", "both.png"]
    assert sorted(path.name for path in here.iterdir()) == names
    assert result.stdout.count("5 frames: original, entropy, kept patches, rebuilt") == 2
    text_lines = 3  # tokens in all, bits, source
    assert len(np.asarray(Image.open(here / "both.png"))) == 46 + 2 * (2 * (26 + 256 + 12) + text_lines * 20)


def test_a_clip_without_its_original(clips: Path, here: Path) -> None:
    moved = here / "set"
    shutil.copytree(clips, moved)
    rewrite_column(moved, "sha256", "0" * 64)
    result = invoke("show", moved, clip_ids(clips)[0], "-o", "lost.png")
    assert result.exit_code == 0, result.output
    assert "no original: the source holds other bytes" in result.output
    assert f"{CLIP_FRAMES} frames: entropy, kept patches, rebuilt" in result.output
    assert moving(here / "lost-moving.webp")[0][0].shape == (256, 3 * 256, 3)


def test_clips_of_one_video_are_told_apart(clips: Path, here: Path) -> None:
    result = invoke("show", clips, "bar")
    assert result.exit_code == 1
    assert "2 rows" in result.output
    for sample_id in clip_ids(clips):
        assert sample_id in result.output
    assert not list(here.iterdir())


def test_report_shows_clips(clips: Path, here: Path) -> None:
    result = invoke("report", clips)
    assert result.exit_code == 0, result.output
    html = (here / "report.html").read_text(encoding="utf-8")
    assert "no original" not in html
    assert "Of a clip these are a few frames" in html
    assert html.count(f"of {CLIP_FRAMES} frames") == 2
    pictures = [Image.open(io.BytesIO(base64.b64decode(words))) for words in re.findall(r"base64,([^\"]+)", html)]
    # Four frames each: two by two with a gap, at 64 pixels, those of 4 x 4 patches among them.
    assert [picture.size for picture in pictures] == 2 * 4 * [(130, 130)]
    [first, *_], [second, *_] = pictures[:4], pictures[4:]
    sources = moving_bar()
    corners = [np.asarray(sheet.convert("RGB"))[:64, :64].astype(int) for sheet in (first, second)]
    nearest = {int(np.argmin([np.abs(corner - source).mean() for source in sources])) for corner in corners}
    assert nearest == {0, CLIP_FRAMES}
