"""The work that every peer is given: photos in tars, one tokenizer, and what a row of the answer holds.

`pixels_of`, `tokenize` and `token_table` are what a user of any peer would have to write; all peers get these.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from tatok.schemas.records import TokenSequence
    from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["ENTROPIES", "SCHEMA", "Row", "Task", "pixels_of", "record", "rows_of", "token_table", "tokenize"]

ENTROPIES = (
    "entropy_bits", "kept_entropy_bits", "residual_bits", "surprisal_bits", "entropy_mean_bits", "entropy_max_bits",
)  # fmt: skip

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("tokens", pa.list_(pa.uint16())),
        ("positions", pa.list_(pa.uint16())),
        ("num_tokens", pa.int32()),
        ("num_global_tokens", pa.int32()),
        ("num_patch_tokens", pa.int32()),
        *((name, pa.float32()) for name in ENTROPIES),
        ("patch_entropy_bits", pa.list_(pa.float16())),
    ]
)
"""What a peer writes a photo; the names and types are those of tatok's own table, which holds more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a peer shall do: tokenize the photos of `shards` (tars) into `output`, a folder that is not there yet.

    `folder` holds the same photos as files, a folder a shard, for those who read files. `tokenizer` is the default
    checkpoint ("real") or the tests' near-free one. All use `num_cpus` cores and as many torch threads.
    """

    shards: tuple[str, ...]
    folder: str
    output: str
    tokenizer: Literal["real", "near-free"]
    batch_size: int
    image_size: int
    num_cpus: int

    def load_tokenizer(self, device: str = "cpu") -> Tokenizer:
        """The one tokenizer, in whichever process it is wanted; all peers compute on the CPU."""
        if self.tokenizer == "near-free":
            from tests.support.fake_tokenizer import load_fake

            return load_fake()  # type: ignore[return-value]  # it has the public face of the real one
        from tatok.tokenizer.tokenizer import Tokenizer

        return Tokenizer.load(device=device)

    def load_for_threads(self, num_threads: int | None = None) -> Tokenizer:
        """The same, in a process where torch uses `num_threads`, by default a thread a core."""
        import torch

        torch.set_num_threads(num_threads or self.num_cpus)
        return self.load_tokenizer()


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """One photo's answer, as bytes that can be compared: codes and positions as uint16."""

    key: str
    codes: bytes
    positions: bytes
    num_global: int
    entropies: tuple[float, ...]
    patch_entropy_bits: bytes


def pixels_of(image: bytes | Image.Image, size: int) -> np.ndarray:
    """The largest centred square, upright, resized by Pillow: uint8 [3, size, size]."""
    opened = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
    rgb = ImageOps.exif_transpose(opened).convert("RGB")
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    square = rgb.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def tokenize(tokenizer: Tokenizer, pixels_BCHW: np.ndarray) -> Sequence[TokenSequence]:
    """As tatok's own tokenizer processes call it."""
    import torch

    return tokenizer.encode_clips(torch.from_numpy(pixels_BCHW)[:, None])


def token_table(keys: Sequence[str], sequences: Sequence[TokenSequence]) -> pa.Table:
    """A row a photo, after SCHEMA."""
    entropies = [sequence.entropy for sequence in sequences]
    columns: dict[str, pa.Array] = {
        "key": pa.array(keys, pa.string()),
        "tokens": _lists([sequence.codes for sequence in sequences], np.uint16),
        "positions": _lists([sequence.positions for sequence in sequences], np.uint16),
        "num_tokens": pa.array([sequence.num_tokens for sequence in sequences], pa.int32()),
        "num_global_tokens": pa.array([sequence.num_global for sequence in sequences], pa.int32()),
        "num_patch_tokens": pa.array([sequence.num_patches for sequence in sequences], pa.int32()),
        **{name: pa.array([getattr(entropy, name) for entropy in entropies], pa.float32()) for name in ENTROPIES},
        "patch_entropy_bits": _lists([entropy.patch_entropy_bits_N for entropy in entropies], np.float16),
    }
    return pa.table(columns, schema=SCHEMA)


def _lists(arrays: Sequence[np.ndarray], dtype: type[np.generic]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays).astype(dtype)))


def record(key: str, sequence: TokenSequence) -> np.ndarray:
    """The same row for a .npy file of its own: one structured value, which is quicker to save than an .npz."""
    entropy = sequence.entropy
    fields = [
        ("key", f"S{len(key.encode())}"),
        ("tokens", "u2", (sequence.num_tokens,)),
        ("positions", "u2", (sequence.num_patches,)),
        ("num_global_tokens", "i4"),
        ("entropies", "f4", (len(ENTROPIES),)),
        ("patch_entropy_bits", "f2", (len(entropy.patch_entropy_bits_N),)),
    ]
    entropies = [getattr(entropy, name) for name in ENTROPIES]
    row = (key.encode(), sequence.codes, sequence.positions, sequence.num_global, entropies)
    return np.array((*row, entropy.patch_entropy_bits_N), dtype=fields)


def rows_of(output: Path) -> Iterator[Row]:
    """What a peer, or tatok, has written below a folder."""
    for path in sorted(output.rglob("*.npy")):
        row = np.load(path)
        yield Row(
            row["key"].item().decode(),
            row["tokens"].tobytes(),
            row["positions"].tobytes(),
            row["num_global_tokens"].item(),
            tuple(row["entropies"].tolist()),
            row["patch_entropy_bits"].tobytes(),
        )
    for path in sorted(output.rglob("*.parquet")):
        if path.parent.name == "rejects":
            continue
        table = pq.read_table(path, columns=SCHEMA.names)
        lists = [table[name].combine_chunks() for name in ("tokens", "positions", "patch_entropy_bits")]
        dtypes = ("u2", "u2", "f2")
        for number, key in enumerate(table["key"].to_pylist()):
            codes, positions, patches = (
                array[number].values.to_numpy(zero_copy_only=False).astype(dtype).tobytes()
                for array, dtype in zip(lists, dtypes, strict=True)
            )
            entropies = tuple(table[name][number].as_py() for name in ENTROPIES)
            yield Row(key, codes, positions, table["num_global_tokens"][number].as_py(), entropies, patches)
