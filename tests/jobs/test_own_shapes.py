"""Tokens of every shape through tokenizing, verifying, loading, showing: several codes a position, many codes, lists,
fewer steps than frames, entropies of a user's own prior."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tatok import Packing, TokenDataset, token_sequences
from tatok.dataset.parts import TokenizedData
from tatok.jobs.pictures import draw_row
from tatok.pipeline.verify.dataset import verify_output
from tatok.schemas.preprocessing import Video
from tatok.statistics.summary import summarize
from tatok.tokenizer.fixed_rate import FixedRate
from tests.support.photos import tar_bytes, write_photo_shards
from tests.support.real_data import write_real_data
from tests.support.synthetic_videos import video_bytes
from tests.support.tokenizers import own


class Squares(own.Lists):
    """Lists of five codes, of images of 64 x 64 pixels."""

    image_size = (64, 64)


class Huge(own.Blocks):
    """A codebook of 2**31 codes, of which nobody counts the use."""

    vocab_size = 1 << 31

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().encode(pixels) + (1 << 30)

    def decode(self, codes: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return super().decode(codes - (1 << 30), height, width)


def written(folder: Path, tokenizer: FixedRate, *, video: bool = False) -> tuple[str, str]:
    """A source of eight photos, or of a video of 16 frames, and its dataset."""
    if video:
        (folder / "source").mkdir()
        (folder / "source" / "v.tar").write_bytes(tar_bytes([("moving.mp4", video_bytes(16, width=64, height=64))]))
        source, options = f"{folder}/source/v.tar", {"video": Video(frames_per_clip=4)}
    else:
        source, options = write_photo_shards(folder, 2, 4), {}
    write_real_data(f"{folder}/out", (source,), image_size=64, tokenizer=tokenizer, **options)
    return source, f"{folder}/out"


@pytest.mark.parametrize("kind", [own.Residual, Squares, own.WithPrior, own.OfClips, Huge])
def test_from_photos_to_pictures(kind: type, tmp_path: Path) -> None:
    tokenizer = FixedRate(kind())
    source, output = written(tmp_path, tokenizer, video=kind is own.OfClips)
    found = verify_output(output, [source])
    assert found.passed, found.findings
    data = TokenizedData.open(output)
    sequences = token_sequences(data.read_all())
    rebuilt = tokenizer.decode_clips(sequences)
    again = tokenizer.encode_clips(rebuilt)
    if kind is not Squares:  # strips are not of one colour again
        assert [sequence.codes.tolist() for sequence in again] == [sequence.codes.tolist() for sequence in sequences]

    loaded = [(tokens, positions) for batch in TokenDataset(output).stream(Packing(tokens=1 << 12), epochs=1)
              for tokens, positions in [(batch.tokens, batch.positions)]]  # fmt: skip
    tokens = torch.cat([tokens for tokens, _ in loaded]).tolist()
    assert sorted(tokens) == sorted(int(code) for sequence in sequences for code in sequence.codes)
    assert max(tokens) < tokenizer.vocab_size

    statistics = summarize(data)
    assert statistics.has_entropy is (kind is own.WithPrior)
    assert statistics.kept_share is not None
    assert (statistics.kept_share.share_THW == 1).all()
    assert [use.num_tokens for use in statistics.codebooks] == ([] if kind is Huge else [0, len(tokens)])
    key = data.read_all()["sample_id"][0].as_py()
    drawn = draw_row(data, key, tokenizer)
    assert drawn.why_no_original is None
    assert drawn.num_moving == (4 if kind is own.OfClips else 0)


def test_codes_beyond_two_bytes_stay_what_they_are(tmp_path: Path) -> None:
    _, output = written(tmp_path, FixedRate(Huge()))
    table = pq.read_table(f"{output}/data")
    assert table.schema.field("tokens").type.value_type == pa.uint32()
    assert min(table["tokens"].combine_chunks().flatten().to_pylist()) >= 1 << 30


def test_frames_that_share_a_step_are_counted_as_frames(tmp_path: Path) -> None:
    _, output = written(tmp_path, FixedRate(own.OfClips()), video=True)
    table = TokenizedData.open(output).read_all()
    assert set(table["num_frames"].to_pylist()) == {4}
    assert set(table["grid_frames"].to_pylist()) == {2}
    [first, *_] = token_sequences(table)
    assert (first.num_frames, first.grid.frames) == (4, 2)


def rewritten(output: str, change: object) -> None:
    [path, *_] = sorted(Path(output, "data").iterdir())
    metadata = {k: v for k, v in pq.read_metadata(path).metadata.items() if k.startswith(b"tatok.")}
    table = change(pq.read_table(path))  # type: ignore[operator]
    path.unlink()
    pq.write_table(table.replace_schema_metadata(metadata), path)


def without_a_code(table: pa.Table) -> pa.Table:
    """The second code of the first position is of the second one, in all rows."""
    name = "positions"
    lists = [np.asarray(row) for row in table[name].to_pylist()]
    for row in lists:
        row[1] = row[2]
    kind = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), kind, pa.array([*map(list, lists)], kind.type))


def with_entropies(table: pa.Table) -> pa.Table:
    field = table.schema.field("entropy_bits")
    values = pa.array([1.0] * len(table), field.type)
    return table.set_column(table.schema.get_field_index("entropy_bits"), field, values)


@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        (without_a_code, "positions", "positions that do not ascend, each with 2 codes in 4 rows"),
        (with_entropies, "rows", "entropies, which the dataset's tokenizer does not have, in 4 rows"),
    ],
)
def test_damage_is_found(change: object, check: str, said: str, tmp_path: Path) -> None:
    _, output = written(tmp_path, FixedRate(own.Residual()))
    rewritten(output, change)
    findings = [finding for finding in verify_output(output).findings if finding.check == check]
    assert [said in finding.message for finding in findings] == [True], findings
