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

from tatok.schemas.records import Grid
from tatok.schemas.token_batch import EntropyColumns, TokenBatch

if TYPE_CHECKING:
    from torch import Tensor

    from tatok.schemas.records import TokenSequence
    from tatok.tokenizer.tokenizer import Tokenizer

__all__ = [
    "ENTROPIES",
    "SCHEMA",
    "NearFree",
    "Row",
    "Task",
    "pixels_of",
    "record",
    "rows_of",
    "token_table",
    "tokenize",
]

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
    checkpoint ("real") or `NearFree`. All use `num_cpus` cores and as many torch threads. All decode by Pillow, which
    is the default of each, or all by simplejpeg, and resize by torch, as tatok's option of that name does.
    """

    shards: tuple[str, ...]
    folder: str
    output: str
    tokenizer: Literal["real", "near-free"]
    batch_size: int
    image_size: int
    num_cpus: int
    decoder: Literal["pillow", "simplejpeg"] = "pillow"

    def load_tokenizer(self, device: str = "cpu") -> Tokenizer:
        """The one tokenizer, in whichever process it is wanted; all peers compute on the CPU."""
        if self.tokenizer == "near-free":
            return NearFree()  # type: ignore[return-value]  # it has as much of the real one's face as is called here
        from tatok.tokenizer.tokenizer import Tokenizer

        return Tokenizer.load(device=device)

    def load_for_threads(self, num_threads: int | None = None) -> Tokenizer:
        """The same, in a process where torch uses `num_threads`, by default a thread a core."""
        import torch

        torch.set_num_threads(num_threads or self.num_cpus)
        return self.load_tokenizer()


@dataclass(frozen=True, kw_only=True)
class NearFree:
    """A tokenizer that costs nearly nothing, so that all else is measured: it looks at one pixel of each patch."""

    vocab_size: int = 1024
    patch_size: int = 16
    num_global: int = 4
    codes_per_position: int = 1
    has_entropy: bool = True

    @property
    def identity(self) -> dict[str, str]:
        """A name."""
        return {"weights": "near-free"}

    @property
    def fingerprint(self) -> str:
        """Of the name."""
        return "0" * 64

    def encode_clips(self, pixels: Tensor) -> TokenBatch:
        """Of images, uint8 [B, 1, 3, H, W]."""
        half = self.patch_size // 2
        seen_B3hw = pixels[:, 0, :, half :: self.patch_size, half :: self.patch_size].numpy().astype(np.int64)
        number_BN = np.tensordot(seen_B3hw, (65_536, 257, 1), (1, 0)).reshape(len(seen_B3hw), -1)
        codes_BN, kept_BN = number_BN % self.vocab_size, number_BN % 7 < 4
        bits_BN = (number_BN % 1000 / 100).astype(np.float32)
        kept_bits_B, sum_B = (bits_BN * kept_BN).sum(1, dtype=np.float64), bits_BN.sum(1, dtype=np.float64)
        is_code = np.concatenate([np.ones((len(kept_BN), self.num_global), bool), kept_BN], axis=1)
        offsets = np.concatenate([[0], kept_BN.sum(1).cumsum()])
        return TokenBatch(
            codes=np.concatenate([codes_BN[:, : self.num_global], codes_BN], axis=1)[is_code],
            code_offsets=offsets + self.num_global * np.arange(len(offsets)),
            positions=kept_BN.nonzero()[1],
            position_offsets=offsets,
            num_global_B=np.full(len(kept_BN), self.num_global),
            grid=Grid(1, *seen_B3hw.shape[2:]),
            entropy=EntropyColumns(
                entropy_bits=sum_B,
                kept_entropy_bits=kept_bits_B,
                residual_bits=sum_B - kept_bits_B,
                surprisal_bits=sum_B,
                entropy_mean_bits=sum_B / bits_BN.shape[1],
                entropy_max_bits=bits_BN.max(1).astype(np.float64),
                patch_entropy_bits_BN=bits_BN,
            ),
        )


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """One photo's answer, as bytes that can be compared: codes and positions as uint16."""

    key: str
    codes: bytes
    positions: bytes
    num_global: int
    entropies: tuple[float, ...]
    patch_entropy_bits: bytes


def pixels_of(image: bytes | Image.Image, task: Task) -> np.ndarray:
    """The largest centred square, upright, resized: uint8 [3, size, size]."""
    size = task.image_size
    if task.decoder == "simplejpeg":
        assert isinstance(image, bytes)
        quick = _by_simplejpeg(image, size)
        if quick is not None:
            return quick
    opened = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
    rgb = ImageOps.exif_transpose(opened).convert("RGB")
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    square = rgb.crop((left, top, left + side, top + side))
    if task.decoder == "simplejpeg":
        from tatok.pipeline.images.simplejpeg import resized

        return np.ascontiguousarray(resized(np.asarray(square), (size, size), "bicubic").transpose(2, 0, 1))
    return np.ascontiguousarray(np.asarray(square.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1))


def _by_simplejpeg(payload: bytes, size: int) -> np.ndarray | None:
    """The same of a JPEG that needs no turning and no colours converted, else None."""
    from tatok.pipeline.images.simplejpeg import decode_jpeg, plain_size, resized

    found = plain_size(payload)
    pixels_HWC = None if found is None else decode_jpeg(payload, found)
    if found is None or pixels_HWC is None:
        return None
    side = min(found)
    left, top = (found[0] - side) // 2, (found[1] - side) // 2
    square = pixels_HWC[top : top + side, left : left + side]
    return np.ascontiguousarray(resized(square, (size, size), "bicubic").transpose(2, 0, 1))


def tokenize(tokenizer: Tokenizer, pixels_BCHW: np.ndarray) -> Sequence[TokenSequence]:
    """As tatok's own tokenizer processes call it."""
    import torch

    return tokenizer.encode_clips(torch.from_numpy(pixels_BCHW)[:, None])


def token_table(keys: Sequence[str], sequences: Sequence[TokenSequence]) -> pa.Table:
    """A row a photo, after SCHEMA; in columns, as the tokenizer gives them."""
    batch = TokenBatch.of(sequences)
    entropy = batch.entropy
    assert entropy is not None
    num_rows, num_positions = entropy.patch_entropy_bits_BN.shape
    columns: dict[str, pa.Array] = {
        "key": pa.array(keys, pa.string()),
        "tokens": _lists(batch.codes, batch.code_offsets, np.uint16),
        "positions": _lists(batch.positions, batch.position_offsets, np.uint16),
        "num_tokens": pa.array(np.diff(batch.code_offsets).astype(np.int32)),
        "num_global_tokens": pa.array(batch.num_global_B.astype(np.int32)),
        "num_patch_tokens": pa.array(np.diff(batch.position_offsets).astype(np.int32)),
        **{name: pa.array(getattr(entropy, name).astype(np.float32)) for name in ENTROPIES},
        "patch_entropy_bits": _lists(
            entropy.patch_entropy_bits_BN.ravel(), np.arange(num_rows + 1) * num_positions, np.float16
        ),
    }
    return pa.table(columns, schema=SCHEMA)


def _lists(values: np.ndarray, offsets: np.ndarray, dtype: type[np.generic]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values.astype(dtype)))


def record(key: str, sequence: TokenSequence) -> np.ndarray:
    """The same row for a .npy file of its own: one structured value, which is quicker to save than an .npz."""
    entropy = sequence.entropy
    assert entropy is not None
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
