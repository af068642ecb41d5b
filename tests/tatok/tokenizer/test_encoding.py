"""The device's part of encoding: one graph without a wait, in the precision that was asked for."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tatok import Tokenizer
from tatok.model.checkpoint import load_checkpoint
from tatok.model.dtf import DTFSettings
from tatok.model.layers import Transformer
from tatok.model.patches import cell_of_patches
from tatok.model.pixels import to_float
from tatok.model.tables import all_tables, table, tables_of
from tatok.precision import computing
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import TokenSequence
from tatok.tokenizer.encoding import Encoding, pack
from tatok.tokenizer.launching import graph_size
from tatok.tokenizer.protocol import EncodesAhead
from tests.support.tiny_checkpoint import NUM_POSITIONS, TINY, tiny_checkpoint, tiny_images

CPU = torch.device("cpu")
SETTINGS = [
    DTFSettings(criterion="distance", threshold_kind="distortion", threshold=2.0),
    DTFSettings(criterion="residual", threshold_kind="distortion", threshold=1.0),
    DTFSettings(criterion="entropy", threshold=40.0, rounds=3, min_tokens=8, max_tokens=40),
    DTFSettings(criterion="surprisal", threshold_kind="fraction", threshold=0.5),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), dtf=SETTINGS[0])


def encoding(folder: Path, dtf: DTFSettings) -> Encoding:
    checkpoint = load_checkpoint(folder)
    return Encoding(model=checkpoint.model, prior=checkpoint.prior, dtf=dtf)


def columns(sequence: TokenSequence) -> tuple[object, ...]:
    entropy = sequence.entropy
    arrays = (sequence.codes, sequence.positions, entropy.patch_entropy_bits_N, entropy.patch_worth_bits_N)
    numbers = (entropy.entropy_bits, entropy.kept_entropy_bits, entropy.residual_bits, entropy.surprisal_bits)
    return (*((array.dtype, array.tobytes()) for array in arrays), sequence.num_global, sequence.grid, *numbers)


by_settings = pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.criterion)


@by_settings
def test_encode_is_its_steps(folder: Path, settings: DTFSettings) -> None:
    tokenizer, pixels = Tokenizer.load(folder, "cpu").with_dtf(settings), tiny_images(5)
    full = tokenizer.full_rate(pixels)
    filtered = tokenizer.filter(full)
    for row, (one, other) in enumerate(zip(tokenizer.encode(pixels), tokenizer.sequences(full, filtered), strict=True)):
        assert columns(one) == columns(other)
        kept = filtered.kept_BN[row]
        assert one.positions.tolist() == kept.nonzero()[:, 0].tolist()
        assert one.codes.tolist() == full.codes.global_BM[row].tolist() + full.codes.patch_BN[row, kept].tolist()
        assert one.entropy.patch_worth_bits_N.tolist() == filtered.worth_BN[row].tolist()
        assert one.entropy.surprisal_bits == filtered.first.surprisal[row].double().numpy().sum()


@by_settings
def test_the_device_s_part_is_one_graph_that_depends_on_no_value(folder: Path, settings: DTFSettings) -> None:
    """A value that the host asked for would be a constant of the graph, or break it."""
    compute = encoding(folder, settings).packed
    first, second = tiny_images(3), tiny_images(3, seed=1)
    with torch.no_grad():
        graph = make_fx(lambda pixels: compute(pixels))(first)
        assert torch.equal(graph(second), compute(second))
        assert not torch.equal(compute(first), compute(second))
        operations = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
        assert not [name for name in operations if "nonzero" in name or "_local_scalar" in name]
        found = torch._dynamo.explain(compute)(first)
    assert (found.graph_count, found.graph_break_count) == (1, 0)


def test_a_packed_row_is_a_few_bytes_a_patch(folder: Path) -> None:
    whole = encoding(folder, SETTINGS[0])
    with torch.no_grad():
        full = whole.full_rate(tiny_images(2))
        packed = pack(full, whole.filter(full))
    assert packed.dtype is torch.int32
    assert packed.is_contiguous()
    assert packed.shape == (2, TINY.num_global + 5 * NUM_POSITIONS)


def test_the_residual_is_what_pixels_are_beyond_the_base(folder: Path) -> None:
    whole, pixels, before = encoding(folder, SETTINGS[0]), tiny_images(3), tiny_images(3, seed=1)
    with torch.no_grad():
        image = whole.full_rate(pixels)
        renewed = torch.zeros_like(image.codes.global_BM, dtype=torch.bool)
        frame = whole.full_rate_after(whole.see(pixels), before, image.codes.global_BM, renewed)
    for full in (image, frame):
        wanted = (whole.model.patches(to_float(pixels)) - full.base_BNP).double().square().sum(-1)
        assert full.residual_BN.dtype is torch.float32
        torch.testing.assert_close(full.residual_BN.double(), wanted, rtol=1e-5, atol=1e-6)
    shown = whole.model.patches(to_float(before))
    torch.testing.assert_close(frame.base_BNP, shown)  # no cell is renewed


def test_encode_async_is_encode(folder: Path) -> None:
    tokenizer, pixels = Tokenizer.load(folder, "cpu"), tiny_images(6)
    pending = [tokenizer.encode_async(pixels[:4]), tokenizer.encode_async(pixels[4:])]
    sequences = [sequence for part in pending for sequence in part.result()]
    assert [columns(s) for s in sequences] == [columns(s) for s in tokenizer.encode(pixels)]
    with pytest.raises(ValueError, match="multiples of 4"):
        tokenizer.encode_async(pixels[:, :, :30])


def test_encode_clips_async_is_encode_clips(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder, "cpu")
    assert isinstance(tokenizer, EncodesAhead)
    for clips in (tiny_images(6)[:, None], tiny_images(6).unflatten(0, (2, 3))):
        pending = tokenizer.encode_clips_async(clips)
        assert pending.is_done(), "a CPU has done its work"
        pending.wait()
        assert [columns(s) for s in pending.result()] == [columns(s) for s in tokenizer.encode_clips(clips)]
    with pytest.raises(ValueError, match="B, T, 3, H, W"):
        tokenizer.encode_clips_async(tiny_images(6))


def test_sizes_of_graphs_are_few_and_fit() -> None:
    sizes = [graph_size(n) for n in range(1, 1025)]
    assert all(n <= size <= max(n * 9 / 8, n) + 1 for n, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) < 70
    assert [graph_size(n) for n in (1, 7, 16, 17, 64, 256, 341)] == [1, 7, 16, 18, 64, 256, 352]


# --- precision --------------------------------------------------------------------------------------------------


def test_the_precision_is_part_of_the_identity(folder: Path) -> None:
    plain, low = Tokenizer.load(folder, "cpu"), Tokenizer.load(folder, "cpu", precision="bfloat16")
    assert plain.identity["precision"] == "float32"
    assert {k for k in plain.identity if plain.identity[k] != low.identity[k]} == {"precision"}
    assert low.with_dtf(threshold=3.0).identity["precision"] == "bfloat16"
    pixels = tiny_images(8)
    sequences = low.encode(pixels)
    assert [columns(s) for s in sequences] != [columns(s) for s in plain.encode(pixels)]
    difference = low.decode(sequences).int() - plain.decode(plain.encode(pixels)).int()
    assert difference.abs().float().mean() < 4
    full = low.full_rate(pixels)
    assert {full.base_BNP.dtype, full.globals_BMC.dtype, full.patches_BNC.dtype} == {torch.float32}


def test_a_precision_that_the_device_does_not_have_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"only CUDA devices have.* use float32 or bfloat16"):
        Tokenizer.load(folder, "cpu", precision="tf32")
    with pytest.raises(ConfigError, match="must be one of float32, tf32, bfloat16"):
        Tokenizer.load(folder, "cpu", precision="float16")  # type: ignore[arg-type]


@pytest.fixture
def modes() -> Iterator[None]:
    """Puts torch's modes back."""
    backends = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul]
    found = [backend.fp32_precision for backend in backends]
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for backend, mode in zip(backends, found, strict=True):
        backend.fp32_precision = mode


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch keeps its modes elsewhere")
@pytest.mark.parametrize("setting", ["nothing", "old", "medium", "new", "all", "mixed"])
def test_the_mode_of_float32_holds_whatever_was_set(modes: None, setting: str) -> None:
    cuda = torch.device("cuda")
    if setting == "old":
        torch.backends.cuda.matmul.allow_tf32 = True
    elif setting == "medium":
        torch.set_float32_matmul_precision("medium")
    elif setting in ("new", "mixed"):
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    if setting in ("all", "mixed"):
        torch.backends.cudnn.fp32_precision = "tf32"

    def read() -> tuple[str, str]:
        return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision

    found = read(), torch.backends.mkldnn.matmul.fp32_precision
    for precision, allowed in (("float32", {"ieee", "none"}), ("tf32", {"tf32"}), ("float32", {"ieee", "none"})):
        with torch.autocast("cpu", enabled=False), computing(precision, cuda):  # type: ignore[arg-type]
            assert set(read()) <= allowed
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is (precision == "tf32")
        assert (read(), torch.backends.mkldnn.matmul.fp32_precision) == found
    with computing("float32", CPU):
        assert torch.backends.mkldnn.matmul.fp32_precision in ("ieee", "none")
    assert (read(), torch.backends.mkldnn.matmul.fp32_precision) == found


def test_threads_wait_for_the_mode_they_need() -> None:
    cuda, order = torch.device("cuda"), []
    is_held = threading.Event()

    def other() -> None:
        is_held.wait(10)
        with computing("tf32", cuda):
            order.append("tf32")

    thread = threading.Thread(target=other)
    thread.start()
    with computing("float32", cuda):
        is_held.set()
        with computing("float32", cuda):  # again, by the same thread
            thread.join(0.2)
        order.append("float32")
    thread.join(10)
    assert order == ["float32", "tf32"]


def test_the_caller_s_autocast_does_not_reach_the_tokens(folder: Path) -> None:
    tokenizer, pixels = Tokenizer.load(folder, "cpu"), tiny_images(4)
    plain = tokenizer.encode(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [columns(s) for s in tokenizer.encode(pixels)] == [columns(s) for s in plain]


# --- tables -----------------------------------------------------------------------------------------------------


def test_tables_are_made_once_and_are_no_part_of_the_model(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder, "cpu")
    model = tokenizer._model
    keys = model.state_dict().keys()
    tokenizer.encode(tiny_images(2))
    tables = {id(each) for each in all_tables()}
    tokenizer.encode(tiny_images(2, seed=1))
    assert {id(each) for each in all_tables()} == tables
    assert model.coordinates((8, 8)) is copy.deepcopy(model).coordinates((8, 8))
    assert model.state_dict().keys() == keys
    assert cell_of_patches((8, 8), 4, CPU) is cell_of_patches((8, 8), 4, CPU)


def test_tables_made_by_inference_serve_training() -> None:
    coordinates = torch.rand(5, 2)
    transformer = Transformer(1, 16, 2)
    with torch.inference_mode():
        transformer(torch.randn(1, 5, 16), coordinates)
    made = table("a test", (), CPU, lambda device: torch.rand(3, device=device))
    assert not made.is_inference()
    x = torch.randn(1, 5, 16, requires_grad=True)
    transformer(x, coordinates).sum().backward()
    assert x.grad is not None


def test_tables_of_a_tensor_live_as_long_as_it() -> None:
    source, calls = torch.rand(2), []

    def build(source: Tensor) -> tuple[Tensor]:
        calls.append(source)
        return (source + 1,)

    assert tables_of(source, ("plus", 1), build)[0] is tables_of(source, ("plus", 1), build)[0]
    assert len(calls) == 1
    tables_of(source.clone(), ("plus", 1), build)
    assert len(calls) == 2


def test_old_tables_are_dropped() -> None:
    first = table("many", (0,), CPU, lambda device: torch.zeros(1, device=device))
    for number in range(1, 300):
        table("many", (number,), CPU, lambda device: torch.zeros(1, device=device))
    assert len(all_tables()) <= 128
    assert table("many", (0,), CPU, lambda device: torch.zeros(1, device=device)) is not first


def test_threads_encode_alike(folder: Path) -> None:
    tokenizer, pixels = Tokenizer.load(folder, "cpu"), tiny_images(8)
    wanted = [columns(s) for s in tokenizer.encode(pixels)]
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append([columns(s) for s in tokenizer.encode(pixels)])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 4
