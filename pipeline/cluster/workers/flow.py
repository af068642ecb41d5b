"""How much goes from one process to the next at a time, and how long each is waited for."""

from __future__ import annotations

from dataclasses import dataclass

from tatok.schemas.job import JobConfig

__all__ = ["Flow"]

_MAX_CHUNKS_AHEAD = 16
_CHUNK_SIZE = 16  # results with which a chunk may go
_CHUNK_BYTES = 1 << 20  # to which chunks of small images grow
_GUARD_START_S = 20.0
_LENT_SHARE = 4  # of the bytes that a shard may hold: what one process that is lent to it may hold for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Of a job whose tokenizers encode so many clips at a time.

    A chunk ends at `chunk_bytes`, or at `chunk_size` once it took its time; `num_ahead` chunks may wait for the
    tokenizer. `lent_bytes` is what a process that helps with a shard may hold of it, beside what the shard holds.
    """

    clip_bytes: int
    chunk_size: int
    chunk_bytes: int
    num_ahead: int
    lent_bytes: int
    deadline_s: float

    @staticmethod
    def of(config: JobConfig, batch_size: int) -> Flow:
        """Slow samples come in small chunks, because each chunk has a deadline; quick ones fill a batch's bytes."""
        most_bytes = config.resources.max_bytes_in_flight
        clip_bytes = 3 * config.preprocessing.image_size**2
        chunk_size = max(1, min(batch_size, _CHUNK_SIZE, most_bytes // (2 * clip_bytes)))
        chunk_bytes = max(
            chunk_size * clip_bytes,
            min(max(_CHUNK_BYTES, batch_size * clip_bytes), most_bytes // _MAX_CHUNKS_AHEAD),
        )
        return Flow(
            clip_bytes=clip_bytes,
            chunk_size=chunk_size,
            chunk_bytes=chunk_bytes,
            num_ahead=max(1, min(_MAX_CHUNKS_AHEAD, most_bytes // chunk_bytes)),
            lent_bytes=most_bytes // _LENT_SHARE,
            deadline_s=config.resources.decode_timeout_s,
        )

    def patience_s(self, *, is_guarded: bool) -> float:
        """For a next chunk. Guarded, one sample may take the whole deadline, and must start a process first."""
        return 2 * self.deadline_s + _GUARD_START_S if is_guarded else self.deadline_s
