"""Decoded clips -> batches -> rows, for one shard; no Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from operator import le

import torch

from tatok.pipeline.output.tables import RowFormat, TokenizedBatch
from tatok.pipeline.tokenization.accelerator_errors import is_out_of_memory
from tatok.pipeline.tokenization.clip_chunk import ClipChunk, ClipRun
from tatok.pipeline.tokenization.reorder import Encode, Encoded, EncodeLater, ReorderBuffer, Taken, TooLarge
from tatok.schemas.errors import TatokError
from tatok.schemas.records import Clip, LeftOutMembers, Reject, TokenSequence, count_text
from tatok.schemas.token_batch import TokenBatch

__all__ = ["Encode", "EncodeLater", "Encoded", "FittingEncode", "TooLarge", "tokenize_clips"]

_FITTED_CALLS = 32
_WINDOW_BATCHES = 8  # as many batches as items may wait for others of their shape


class FittingEncode:
    """An `Encode` in parts that fit the device's memory: halved when it runs out, doubled when it has not for long.

    Results are in the order of the clips; a clip that does not fit by itself gives a `TooLarge`. Raises TatokError
    where such a clip did fit before, so that it is not the clip's doing.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._most: int | None = None  # clips at a time; None: as many as come
        self._num_fitted = 0  # calls since the last change of it
        self._fitted: set[tuple[int, ...]] = set()  # shapes of clips

    @property
    def fits_all(self) -> bool:
        """Whether the device has not run out of memory, or not for long: batches are encoded in one part."""
        return self._most is None

    def note_fitted(self, shape: tuple[int, ...]) -> None:
        """Clips [T, 3, H, W] of that shape were encoded without this."""
        self._fitted.add(shape)

    def __call__(self, pixels_BTCHW: torch.Tensor) -> Sequence[TokenSequence | TooLarge]:
        """Token sequences of the clips; a `TokenBatch`, where those of `encode` are."""
        shape = tuple(pixels_BTCHW.shape[1:])
        results: list[Sequence[TokenSequence | TooLarge]] = []
        num_done, is_last_try = 0, False
        while num_done < len(pixels_BTCHW):
            part = pixels_BTCHW[num_done:][: self._most]
            sequences, lacking = self._try(part)
            if lacking is None:
                if len(sequences) != len(part):
                    raise TatokError(
                        f"the tokenizer returned {count_text(len(sequences), 'sequence')} for "
                        f"{count_text(len(part), 'image')}"
                    )
                results.append(sequences)
                num_done += len(part)
                self._fitted.add(shape)
                self._grow(len(pixels_BTCHW))
                is_last_try = False
                continue
            torch.cuda.empty_cache()  # here the failed call's tensors are gone
            if len(part) > 1:
                self._most, self._num_fitted = len(part) // 2, 0
            elif is_last_try:
                results.append([self._too_large(shape, lacking)])
                num_done += 1
                is_last_try = False
            else:
                is_last_try = True  # with all of the memory
        if len(results) == 1:
            return results[0]
        batches = [batch for batch in results if isinstance(batch, TokenBatch)]
        if len(batches) == len(results):
            return TokenBatch.joined(batches)
        return [result for some in results for result in some]

    def _try(self, part_BTCHW: torch.Tensor) -> tuple[Sequence[TokenSequence | TooLarge], str | None]:
        """The sequences, or what lacks memory. A call of its own: while an error is handled, it holds the tensors."""
        try:
            return self._encode(part_BTCHW), None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return (), str(error).strip().splitlines()[0]

    def _too_large(self, shape: tuple[int, ...], lacking: str) -> TooLarge:
        what = f"{shape[0]} frame(s) of {shape[-1]}x{shape[-2]} pixels"
        if any(all(map(le, shape, fitted)) for fitted in self._fitted):
            raise TatokError(
                f"the tokenizer's device has no memory for {what} any more, though so much did fit before ({lacking}); "
                "leave the device to this job alone"
            )
        return TooLarge(
            detail=f"{what} do not fit the memory of the tokenizer's device ({lacking}); make them fewer or smaller in "
            "preprocessing and video, or use a device with more memory"
        )

    def _grow(self, num_clips: int) -> None:
        self._num_fitted += 1
        if self._most is not None and self._num_fitted >= _FITTED_CALLS:
            self._most, self._num_fitted = 2 * self._most, 0
            if self._most >= num_clips:
                self._most = None


def tokenize_clips(
    decoded: Iterable[ClipChunk | Clip | Reject | LeftOutMembers],
    encode: Encode | EncodeLater,
    *,
    batch_size: int,
    vocab_size: int,
    patch_entropy: bool,
    patch_worth: bool = False,
    has_entropy: bool = True,
    max_waiting_bytes: int = 256 << 20,
) -> Iterator[TokenizedBatch]:
    """Tokenize in batches of equal shape and yield the rows in the order of `decoded`.

    Clips of one shape wait for each other, so that batches are full where shapes alternate: for at most
    8 * batch_size items, and while the pixels of all that wait come to less than a quarter of `max_waiting_bytes`, or
    than two batches of the largest clips, as far as `max_waiting_bytes` goes. The batches depend on the clips and the
    arguments alone, never on chunks, timing or who encodes them, so that a shard that is done again gives the same
    bytes. With an `EncodeLater` rows are yielded once they are there, and further batches are made meanwhile: how many
    is its affair, by not returning before there is room.
    """
    row_format = RowFormat(
        vocab_size=vocab_size, patch_entropy=patch_entropy, patch_worth=patch_worth, has_entropy=has_entropy
    )
    buffer = ReorderBuffer(
        encode,
        row_format,
        batch_size=batch_size,
        window=_WINDOW_BATCHES * batch_size,
        max_waiting_bytes=max_waiting_bytes,
    )
    taken = deque[Taken]()
    for item in decoded:
        if isinstance(item, LeftOutMembers):
            rows = row_format.schema.empty_table()
            yield TokenizedBatch(rows=rows, rejects=(), num_tokens=0, left_out=item.counts)
            continue
        chunk = item if isinstance(item, ClipChunk) else ClipChunk.of([item])
        buffer.start(chunk)
        for run in chunk.runs():
            rest: ClipRun | Reject | None = run
            while rest is not None:
                rest = buffer.add(rest)
                while buffer.must_encode:
                    buffer.encode_oldest()
                # Rejects count too: a shard of nothing else must neither pile up nor look as if nothing happened.
                while buffer.num_ready >= batch_size:
                    taken.append(buffer.take(batch_size))
                while taken and taken[0].is_done:
                    yield taken.popleft().batch()
    while buffer.num_items:
        buffer.encode_oldest()
        if buffer.num_ready:
            taken.append(buffer.take(buffer.num_ready))
    for each in taken:
        yield each.batch()
