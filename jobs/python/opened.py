"""One face of a dataset: its figures, rows, pictures and batches, each by what the commands use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from tatok.dataset.lookup import find_rows, read_rows
from tatok.dataset.parts import TokenizedData
from tatok.dataset.rows import token_sequences
from tatok.schemas.errors import ConfigError, SourceError
from tatok.schemas.manifest import RunDocument
from tatok.schemas.preprocessing import Preprocessing
from tatok.schemas.records import TokenSequence, count_text

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

    from tatok.dataset.dataset import TokenDataset
    from tatok.dataset.windows import Filters
    from tatok.jobs.python.shown import Shown
    from tatok.statistics.groups import GroupedStatistics
    from tatok.statistics.summary import DatasetStatistics
    from tatok.tokenizer.protocol import AnyTokenizer

__all__ = ["OpenedDataset", "open_dataset"]

_SHOWN_UNASKED = 3


def open_dataset(
    output: str | PathLike[str],
    *,
    checkpoint: str | PathLike[str] | None = None,
    tokenizer: str | None = None,
    tokenizer_options: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> OpenedDataset:
    """A tokenized dataset by its path or fsspec URL, as `tatok.open`; what it holds is read when it is asked for.

    To decode and show, the tokenizer that made the tokens is loaded: the one that the dataset names, or the checkpoint
    or tokenizer that is named here. Raises SourceError where there is no dataset.
    """
    made_by = _MadeBy(None if checkpoint is None else str(checkpoint), tokenizer, tokenizer_options, device)
    return OpenedDataset(TokenizedData.open(output), made_by)


class _MadeBy:
    """The tokenizer that made the tokens, as the caller names it."""

    def __init__(
        self, checkpoint: str | None, tokenizer: str | None, options: Mapping[str, Any] | None, device: str | None
    ) -> None:
        self._checkpoint, self._tokenizer, self._options, self._device = checkpoint, tokenizer, options, device

    def load(self, data: TokenizedData) -> AnyTokenizer:
        from tatok.report.rebuilt import tokenizer_of

        return tokenizer_of(data, self._checkpoint, self._device, tokenizer=self._tokenizer, options=self._options)


class OpenedDataset:
    """A dataset as it was when it was opened; parts that a running job adds are not seen.

    `len` counts its rows, iteration gives their keys. A key may also be a sample id, or its first 8 digits.
    """

    def __init__(self, data: TokenizedData, made_by: _MadeBy) -> None:
        self.data = data
        self._made_by = made_by

    def __repr__(self) -> str:
        data = self.data
        mean = data.num_tokens / max(data.num_rows, 1)
        state = "" if data.complete else ", not complete"
        return (
            f"OpenedDataset({data.url}: {count_text(data.num_rows, 'row')}, {data.num_tokens:,} tokens, "
            f"{mean:.1f} a row, by "
            f"{self._tokenizer_name()}{state})"
        )

    def __len__(self) -> int:
        return self.data.num_rows

    def __iter__(self) -> Iterator[str]:
        for part in self.data.parts:
            yield from self.data.read(part.name, columns=["key"]).column("key").to_pylist()

    @property
    def url(self) -> str:
        """Where it lies."""
        return self.data.url

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of its rows; none while no part is published."""
        return tuple(self.data.schema.names) if self.data.parts else ()

    @property
    def run(self) -> RunDocument:
        """How its tokens were made: the configuration, and the fingerprint of all that they depend on."""
        return self.data.run

    @property
    def preprocessing(self) -> Preprocessing:
        """How images became the pixels that were tokenized; `Tokenizer.encode(image, preprocessing=...)` takes it."""
        from tatok.pipeline.decode.originals import Recipe

        return Recipe.of_run(self.data.run).preprocessing

    @cached_property
    def tokenizer(self) -> AnyTokenizer:
        """The tokenizer that made the tokens. Raises ConfigError where it cannot be loaded or is another one."""
        return self._made_by.load(self.data)

    @overload
    def stats(self, *, by: None = None, exact: bool = False) -> DatasetStatistics: ...
    @overload
    def stats(self, *, by: str, limit: int = 20, exact: bool = False) -> GroupedStatistics: ...
    def stats(
        self, *, by: str | None = None, limit: int = 20, exact: bool = False
    ) -> DatasetStatistics | GroupedStatistics:
        """The figures of `tatok stats`: counts, distributions, codebook use, size; or of each value of a column."""
        from tatok.statistics import group_by, summarize

        return summarize(self.data, exact=exact) if by is None else group_by(self.data, by, limit=limit, exact=exact)

    def print_stats(self, *, by: str | None = None, limit: int = 20, exact: bool = False) -> None:
        """Print what `tatok stats` prints."""
        from tatok.jobs.text.statistics import groups_text, statistics_text

        if by is None:
            print(statistics_text(self.stats(exact=exact)), end="")
        else:
            print(groups_text(self.stats(by=by, limit=limit, exact=exact)), end="")

    def query(self, sql: str, *, tables: Mapping[str, str | PathLike[str]] | None = None) -> pa.Table:
        """The rows of one SELECT statement (DuckDB's SQL) over the tables tokens and rejects; see `tatok query`."""
        from tatok.statistics import query

        return query(self.data, sql, tables=tables)

    def rows(self, *keys: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of these keys in their order, or all rows, with some columns or all.

        Raises ConfigError where a key fits no row, or several.
        """
        names = None if columns is None else list(columns)
        if not keys:
            return self.data.read_all(names)
        return read_rows(self.data, find_rows(self.data, keys), names)

    def sequences(self, *keys: str) -> list[TokenSequence]:
        """The token sequences of these keys in their order, or of all rows."""
        return token_sequences(self.rows(*keys))

    def dataset(
        self,
        *,
        columns: Sequence[str] = (),
        filters: Filters | None = None,
        cache: str | PathLike[str] | None = None,
        seed: int = 0,
    ) -> TokenDataset:
        """The rows for training, with the options of `tatok.TokenDataset`."""
        from tatok.dataset.dataset import TokenDataset

        return TokenDataset(self.url, columns=columns, filters=filters, cache=cache, seed=seed)

    @overload
    def decode(self, key: str) -> Image.Image: ...  # type: ignore[overload-overlap]  # a text is a sequence of texts
    @overload
    def decode(self, key: Sequence[str]) -> list[Image.Image]: ...
    def decode(self, key: str | Sequence[str]) -> Image.Image | list[Image.Image]:
        """What the tokens of a key rebuild, or of several in their order.

        Raises ConfigError where a key fits no row or is of a clip, or the tokenizer cannot decode.
        """
        if isinstance(key, str):
            return self.decode([key])[0]
        clips = self._rebuilt(key)
        for name, pixels_THW3 in zip(key, clips, strict=True):
            if len(pixels_THW3) > 1:
                raise ConfigError(f"{name!r} is a clip of {len(pixels_THW3)} frames", remedy="take decode_clip(key)")
        return [_picture(pixels_THW3[0]) for pixels_THW3 in clips]

    def decode_clip(self, key: str) -> list[Image.Image]:
        """The frames that the tokens of a clip rebuild; of an image, one."""
        return [_picture(pixels_HW3) for pixels_HW3 in self._rebuilt([key])[0]]

    def show(
        self,
        *keys: str,
        frames: int = 6,
        heat: Literal["worth", "entropy"] | None = None,
        timeout: float = 60.0,
    ) -> Shown:
        """Rows as pictures: originals, bits of each patch, kept patches, reconstructions, as `tatok show` draws them.

        Without keys the first three rows. `frames` are of a clip; `timeout` is how many seconds the sources have to
        give the originals. Raises ConfigError where a key fits no row, and where rows do not fit on one sheet.
        """
        from tatok.jobs.pictures import draw_table, rows_to_draw
        from tatok.jobs.python.shown import Shown

        table = rows_to_draw(self.data, keys or self._first_ids(), most_frames=frames)
        tokenizer = self.tokenizer  # loaded once the rows are found
        return Shown(draw_table(self.data, table, tokenizer, most_frames=frames, heat=heat, max_seconds=timeout))

    def _first_ids(self) -> Sequence[str]:
        ids: list[str] = []
        for part in self.data.parts:
            ids += (
                self.data.read(part.name, columns=["sample_id"])
                .column("sample_id")
                .slice(0, _SHOWN_UNASKED)
                .to_pylist()
            )
            if len(ids) >= _SHOWN_UNASKED:
                break
        if not ids:
            raise SourceError(f"{self.url} has no rows yet; wait for the first shard, or look at its rejects")
        return ids[:_SHOWN_UNASKED]

    def _rebuilt(self, keys: Sequence[str]) -> list[np.ndarray]:
        from tatok.report.rebuilt import rebuilt_clips

        clips = rebuilt_clips(self.data, self.sequences(*keys), self.tokenizer) if keys else []
        return [pixels_T3HW.transpose(0, 2, 3, 1) for pixels_T3HW in clips]

    def _tokenizer_name(self) -> str:
        run = self.data.run
        named = run.config.get("tokenizer") or run.config.get("checkpoint")
        return str(named) if named else f"checkpoint {run.fingerprint.get('tokenizer.weights_sha256', '')[:8]}"


def _picture(pixels_HW3: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels_HW3))
