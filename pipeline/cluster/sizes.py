"""How many actors a job gets on a given cluster; no Ray."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Shard

__all__ = ["Sizes", "count_pieces", "plan_sizes", "resize"]

_GPU_BATCH, _CPU_BATCH = 256, 16  # a GPU computes such a batch about as soon as its kernels can be started
# What is worth a process of its own that must start and load the model: seconds of a core, with the bundled checkpoint.
_PIECE_BYTES, _PIECE_SAMPLES = 2 << 20, 64
_PIECES_A_GPU = 64
_MANY_PIECES = 10_000
_GPUS_A_SHARD = 2  # whose pixels one process can hand on


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many actors of each kind, and what each asks Ray for.

    `device` is what each tokenizer loads its model onto, wherever it runs: a node may have GPUs that are not its own.
    `batch_size` is how many images or clips it encodes at a time.
    With `decodes_in_place` there is no decoder actor: a tokenizer decodes its shards itself, and `num_decoders` is how
    many shards all of them work on at a time.
    """

    num_tokenizers: int
    num_decoders: int
    shards_per_tokenizer: int
    gpus_per_tokenizer: float
    cpus_per_actor: float
    torch_threads: int
    device: str
    batch_size: int
    decodes_in_place: bool = False

    @property
    def num_actors(self) -> int:
        """Processes that ask for a share of the CPUs."""
        return self.num_tokenizers + (0 if self.decodes_in_place else self.num_decoders)


def count_pieces(shards: Iterable[Shard]) -> int:
    """How many processes the shards are worth, several of them working on one shard where it is large.

    At least one a shard; where there are many, not all are looked at.
    """
    count = 0
    for shard in shards:
        if count >= _MANY_PIECES:
            break
        count += max(1, shard.num_bytes // _PIECE_BYTES, (shard.num_samples or 0) // _PIECE_SAMPLES)
    return count


def plan_sizes(
    config: JobConfig, *, num_shards: int, num_cpus: float, num_gpus: float, num_pieces: int | None = None
) -> Sizes:
    """Fit the job to the cluster's CPUs and GPUs; no more actors than there are pieces for them.

    `num_pieces` is what `count_pieces` says of the shards; by default none of them is shared.

    A job that says cuda never gets other tokenizers: without GPUs it gets those that wait for one. Raises ConfigError
    where the job asks for more GPUs than there are, if there are any, or for a precision that needs one.
    """
    resources = config.resources
    num_pieces = max(num_pieces or 0, num_shards)
    wants_gpu = config.device == "cuda" or (config.device is None and num_gpus >= 1)
    if config.precision == "tf32" and not wants_gpu:
        raise ConfigError(
            "precision is tf32, which only GPUs have, and Ray has none; say device: cuda, so that the job waits for "
            "one, or another precision"
        )
    if wants_gpu and num_gpus >= 1 and min(resources.num_tokenizers or 1, num_shards) > num_gpus:
        raise ConfigError(
            f"resources.num_tokenizers is {resources.num_tokenizers}, but Ray has {num_gpus:g} GPUs and each needs one"
        )
    # On CPUs alone decoding and tokenizing want the same cores: pixels need not change process for that, and one torch
    # thread in each of several processes does more than several threads in one, which wait for each other.
    decodes_in_place = resources.num_decoders == 0 or (resources.num_decoders is None and not wants_gpu)
    by_default = int(num_gpus) if wants_gpu else int(num_cpus) if decodes_in_place else 1
    most_tokenizers = num_pieces
    if wants_gpu:  # and never more than there are, but for those that a job with so many shards waits for
        most_tokenizers = min(num_pieces // _PIECES_A_GPU, _GPUS_A_SHARD * num_shards, int(num_gpus))
    wanted = resources.num_tokenizers or max(by_default, 1)
    num_tokenizers = min(wanted, max(most_tokenizers, num_shards))
    if decodes_in_place:
        num_decoders = min(num_tokenizers * (resources.shards_in_flight or 1), num_shards)
    else:
        num_decoders = min(resources.num_decoders or max(2, int(num_cpus) - num_tokenizers), num_pieces)
        if resources.shards_in_flight is not None:
            num_decoders = min(num_decoders, resources.shards_in_flight * num_tokenizers)
    sizes = Sizes(
        num_tokenizers=num_tokenizers,
        num_decoders=num_decoders,
        shards_per_tokenizer=math.ceil(min(num_decoders, num_shards) / num_tokenizers),
        gpus_per_tokenizer=1.0 if wants_gpu else 0.0,
        cpus_per_actor=1.0,
        # However many there are in the end: with another number entropies differ in their last bits, and a run that
        # is resumed has fewer shards.
        torch_threads=max(1, int(num_cpus) // wanted),
        device="cuda" if wants_gpu else config.device or "cpu",
        batch_size=resources.batch_size or (_GPU_BATCH if wants_gpu else _CPU_BATCH),
        decodes_in_place=decodes_in_place,
    )
    # Fewer CPUs than actors is fine, as on a laptop: they share, and Ray must still place them all.
    share = min(1.0, math.floor(100 * num_cpus / sizes.num_actors) / 100)
    return replace(sizes, cpus_per_actor=max(share, 0.01))


def resize(
    sizes: Sizes,
    config: JobConfig,
    *,
    num_shards: int,
    num_cpus: float,
    num_gpus: float,
    num_pieces: int | None = None,
) -> Sizes:
    """The sizes for what the cluster has now and for the shards that are left, of a job that was begun with `sizes`.

    GPUs that have gone are waited for: a node that is lost is no reason to refuse the job. A job that was begun without
    GPUs continues without.
    """
    if num_shards == 0:
        return replace(sizes, num_tokenizers=0, num_decoders=0)
    needed = sizes.num_tokenizers * sizes.gpus_per_tokenizer
    num_gpus = max(num_gpus, needed) if sizes.gpus_per_tokenizer else 0.0
    return plan_sizes(config, num_shards=num_shards, num_cpus=num_cpus, num_gpus=num_gpus, num_pieces=num_pieces)
