"""What a user writes of a tokenizer, made to what the pipeline calls: shapes, entropies, the way back, refusals."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tatok.schemas.errors import ConfigError, TatokError
from tatok.schemas.records import Grid
from tatok.schemas.token_batch import TokenBatch
from tatok.tokenizer.fixed_rate import FixedRate, WithIdentity, WrongCodes
from tatok.tokenizer.protocol import EncodesAhead
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.tokenizers.own import Blocks, Lists, OfClips, Residual, WithPrior

PIXELS = torch.randint(0, 256, (3, 4, 3, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def told(sequences: TokenBatch) -> list[object]:
    return [(s.codes.tolist(), s.positions.tolist(), s.entropy and s.entropy.surprisal_bits) for s in sequences]


def test_images_and_back() -> None:
    tokenizer = FixedRate(Blocks())
    batch = tokenizer.encode(PIXELS[:, 0])
    first = batch[0]
    assert (first.grid, first.num_global, first.entropy, first.global_frames) == (Grid(1, 2, 3), 0, None, None)
    assert first.positions.tolist() == list(range(6))
    assert first.codes.dtype == np.uint16
    assert first.codes.tolist() == Blocks().encode(PIXELS[:1, 0]).flatten().tolist()
    rebuilt = tokenizer.decode(batch)
    assert (rebuilt.dtype, rebuilt.shape) == (torch.uint8, PIXELS[:, 0].shape)
    assert tokenizer.encode(rebuilt)[0].codes.tolist() == first.codes.tolist(), (
        "of blocks of one colour nothing is lost"
    )


def test_clips_go_frame_by_frame_where_only_images_are_known() -> None:
    tokenizer = FixedRate(Blocks())
    clips, frames = tokenizer.encode_clips(PIXELS), tokenizer.encode(PIXELS.flatten(0, 1))
    assert clips.grid == Grid(4, 2, 3)
    assert clips.codes.tolist() == frames.codes.tolist()
    assert clips[0].global_frames is not None
    assert len(clips[0].global_frames) == 0
    assert torch.equal(tokenizer.decode_clips(clips).flatten(0, 1), tokenizer.decode(frames))


@pytest.mark.parametrize(
    "inner", [Blocks(), OfClips(), Residual(), WithPrior()], ids=lambda inner: type(inner).__name__
)
def test_ahead_is_the_same_in_two_steps(inner: Blocks) -> None:
    tokenizer = FixedRate(inner)
    assert isinstance(tokenizer, EncodesAhead)
    first, second = (tokenizer.encode_clips_async(clips) for clips in (PIXELS, PIXELS.flip(0)))
    assert first.is_done()
    assert second.is_done()
    for pending, clips in ((second, PIXELS.flip(0)), (first, PIXELS)):
        pending.wait()
        assert told(pending.result()) == told(tokenizer.encode_clips(clips))


def test_an_object_is_asked_for_entropies_by_who_gives_it_pixels() -> None:
    """It need not bear two threads at a time, as a job's shards would be."""
    asked: list[str] = []

    class Asked(WithPrior):
        def surprisal_bits(self, codes: Tensor) -> Tensor:
            asked.append("surprisal")
            return super().surprisal_bits(codes)

    pending = FixedRate(Asked()).encode_clips_async(PIXELS)
    assert asked == ["surprisal"]
    pending.result()
    assert asked == ["surprisal"]


def test_a_tokenizer_of_the_upper_tier_is_asked_ahead_where_it_can_be() -> None:
    able, unable = FixedRate(Blocks()), FakeTokenizer()
    for tokenizer, is_able in ((able, True), (unable, False)):
        named = WithIdentity(tokenizer, {"tokenizer.code": "here"}, "it")
        assert isinstance(named, EncodesAhead) == is_able
    pending = WithIdentity(able, {}, "it").encode_clips_async(PIXELS)
    assert told(pending.result()) == told(able.encode_clips(PIXELS))


def test_several_codes_a_position_follow_each_other_and_may_be_many() -> None:
    tokenizer = FixedRate(Residual())
    first = tokenizer.encode(PIXELS[:, 0])[0]
    assert first.positions.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert first.codes.dtype == np.uint32
    assert first.codes.max() > 1 << 16
    assert (first.num_tokens, first.num_patches, first.num_kept) == (12, 12, 6)
    assert torch.equal(
        tokenizer.decode([first])[0], FixedRate(Blocks()).decode(FixedRate(Blocks()).encode(PIXELS[:1, 0]))[0]
    )


def test_lists_of_codes_have_one_row_and_need_a_size() -> None:
    tokenizer = FixedRate(Lists())
    first = tokenizer.encode(PIXELS[:, 0])[0]
    assert first.grid == Grid(1, 1, 5)
    assert tokenizer.decode([first]).shape == (1, 3, 16, 24)
    assert tokenizer.encode_clips(PIXELS).grid == Grid(4, 1, 5)
    with pytest.raises(TatokError, match=r"takes images of 24x16 pixels alone, and these are 8x8; set .*image_size"):
        tokenizer.encode(PIXELS[:, 0, :, :8, :8])

    class Sizeless(Lists):
        image_size = None

    with pytest.raises(WrongCodes, match="give it image_size"):
        FixedRate(Sizeless()).encode(PIXELS[:, 0])


def test_time_may_have_fewer_steps_than_frames() -> None:
    tokenizer = FixedRate(OfClips())
    batch = tokenizer.encode_clips(PIXELS)
    assert (batch.grid, batch.num_frames, batch[1].num_frames) == (Grid(2, 2, 3), 4, 4)
    assert tokenizer.decode_clips(batch[:2]).shape == (2, 4, 3, 16, 24)
    with pytest.raises(ValueError, match="is a clip"):
        tokenizer.decode(batch)

    # Four frames in one step are no image, though their grid is one's.
    class Whole(OfClips):
        frames_a_step = 4

    whole = FixedRate(Whole())
    assert whole.encode_clips(PIXELS).grid == Grid(1, 2, 3)
    assert whole.decode_clips(whole.encode_clips(PIXELS)).shape[1] == 4
    assert whole.encode_clips(PIXELS[:, :1]).num_frames is None


def test_a_prior_gives_entropies() -> None:
    tokenizer = FixedRate(WithPrior())
    assert (tokenizer.has_entropy, FixedRate(Blocks()).has_entropy) == (True, False)
    entropy = tokenizer.encode(PIXELS[:, 0])[1].entropy
    assert entropy is not None
    assert (entropy.entropy_bits, entropy.kept_entropy_bits, entropy.residual_bits) == (12.0, 12.0, 0.0)
    assert (entropy.surprisal_bits, entropy.entropy_max_bits) == (18.0, 2.0)

    class Half(WithPrior):
        surprisal_bits = property()  # hasattr says no

    with pytest.raises(ConfigError, match="write both, or neither"):
        FixedRate(Half())


def given(codes: object, **members: object) -> FixedRate:
    """A tokenizer that returns these codes, whatever it is shown."""
    kind = type("Given", (Blocks,), {"encode": lambda self, pixels: codes, **members})
    return FixedRate(kind(), name="mine.py:load")


@pytest.mark.parametrize(
    ("codes", "said", "is_range"),
    [
        (torch.zeros(1, 3, 2), r"mine\.py:load returned codes of shape", False),
        (torch.zeros(1, 2, 3), "codes of type float32; they must be whole numbers", False),
        (torch.zeros(1, 3, 2, dtype=torch.int64), r"shape \[1, 1, 3, 2\].*makes \(2, 3\) of them", False),
        (torch.zeros(2, 2, 3, dtype=torch.int64), r"shape \[2, 2, 3\] for 1 image", False),
        (torch.full((1, 2, 3), -1), r"codes in -1 \.\. -1; its vocab_size is 4096", True),
        (np.full((1, 2, 3), 4096), r"codes in 4096 \.\. 4096", True),
    ],
)
def test_what_are_no_codes_of_the_pixels(codes: object, said: str, is_range: bool) -> None:
    if said.startswith("mine"):
        codes = codes.long()[:, :, :, None]  # type: ignore[attr-defined]
    with pytest.raises(WrongCodes, match=said) as caught:
        given(codes).encode(PIXELS[:1, 0])
    assert caught.value.is_range is is_range
    assert pickle.loads(pickle.dumps(caught.value)).is_range is is_range, "it comes from other processes"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"vocab_size": 0}, "vocab_size 0; it must be a whole number"),
        ({"vocab_size": 1 << 33}, "vocab_size is 8589934592"),
        ({"patch_size": 16.0}, "patch_size 16.0"),
        ({"codes_per_position": True}, "codes_per_position True"),
        ({"image_size": (16,)}, r"image_size \(16,\)"),
        ({"identity": {"weights": 3}}, "identity has weights; entries are texts"),
        ({"identity": {"torch": "mine"}}, "identity has torch"),
    ],
)
def test_members_that_cannot_be(members: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        given(None, **members)


def test_who_cannot_encode_is_no_tokenizer() -> None:
    class Neither:
        vocab_size, patch_size, identity = 2, 8, "none"

    with pytest.raises(ConfigError, match="neither encode nor encode_clips"):
        FixedRate(Neither())
    with pytest.raises(ConfigError, match="has no vocab_size"):
        FixedRate(object())  # type: ignore[arg-type]


def lose_a_position(codes: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return codes[1:], positions[1:]


def exceed(codes: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.where(positions == 2, 4096, codes.astype(np.int64)), positions


@pytest.mark.parametrize(("change", "said"), [(lose_a_position, "1 codes at every position"), (exceed, "0 .. 4095")])
def test_tokens_that_are_damaged_are_not_decoded(
    change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]], said: str
) -> None:
    from dataclasses import replace

    tokenizer = FixedRate(Blocks())
    first = tokenizer.encode(PIXELS[:1, 0])[0]
    codes, positions = change(first.codes, first.positions)
    with pytest.raises(ValueError, match=said):
        tokenizer.decode([replace(first, codes=codes, positions=positions)])


def test_without_a_decoder_it_says_so() -> None:
    class Blind:
        vocab_size, patch_size, identity = 4096, 8, "no way back"
        encode = Blocks.encode

    tokenizer = FixedRate(Blind(), name="blind.py:load")
    with pytest.raises(ConfigError, match=r"blind\.py:load has no decode, so that"):
        tokenizer.decode(tokenizer.encode(PIXELS[:, 0]))


def test_what_it_raises_says_where_but_what_torch_raises_stays() -> None:
    """The pipeline knows a device without memory, or without life, by torch's RuntimeError."""

    def raising(error: Exception) -> FixedRate:
        def encode(self: object, pixels: Tensor) -> Tensor:
            raise error

        return FixedRate(type("Raising", (Blocks,), {"encode": encode})(), name="mine.py:load")

    said = r"mine\.py:load, encode: KeyError: 'layer' \(test_fixed_rate\.py, line \d+\)"
    with pytest.raises(TatokError, match=said):
        raising(KeyError("layer")).encode(PIXELS[:, 0])
    with pytest.raises(torch.OutOfMemoryError):
        raising(torch.OutOfMemoryError("CUDA out of memory")).encode(PIXELS[:, 0])


def test_pixels_of_another_kind() -> None:
    tokenizer = FixedRate(Blocks())
    for wrong in (PIXELS[:, 0].float(), PIXELS[:, 0, :2], PIXELS[:, 0, :, :10], PIXELS):
        with pytest.raises(ValueError, match=r"expected|multiples of 8"):
            tokenizer.encode(wrong)


def test_the_identity_names_torch_and_what_is_added() -> None:
    one = FixedRate(Blocks(), also={"code": "a.py:load (1)"})
    other = FixedRate(Blocks(), also={"code": "a.py:load (2)"})
    assert one.identity == {"identity": "blocks", "torch": torch.__version__.partition("+")[0], "code": "a.py:load (1)"}
    assert one.fingerprint != other.fingerprint


def test_nothing_is_decoded_to_nothing() -> None:
    empty: Tensor = FixedRate(Blocks()).decode_clips([])
    assert empty.shape == (0, 0, 3, 0, 0)
