"""The classes of `transformers` themselves, tiny and of random weights, saved by them and loaded by the adapter."""

from __future__ import annotations

import inspect
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tatok.adapters.transformers import load
from tatok.schemas.errors import ConfigError
from tatok.tokenizer.fixed_rate import FixedRate
from tatok.tokenizer.named import load_tokenizer
from tests.support.tiny_checkpoint import tiny_images

CODES = 64
PRECISIONS = ("float32", "bfloat16")
CONVOLUTIONS = {"base_channels": 32, "num_res_blocks": 1}
PATCH = {"janus": 16, "chameleon": 16, "emu3": 8}


def build(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "emu3":
        from transformers import Emu3VQVAE, Emu3VQVAEConfig

        model: Any = Emu3VQVAE(
            Emu3VQVAEConfig(
                codebook_size=CODES,
                channel_multiplier=[1, 1, 1, 1],
                hidden_size=32,
                attn_resolutions=[],
                **CONVOLUTIONS,
            )
        )
    else:
        sizes = {"embed_dim": 8, "num_embeddings": CODES, "latent_channels": 32, "channel_multiplier": [1] * 5}
        if kind == "janus":
            from transformers import JanusVQVAEConfig
            from transformers.models.janus.modeling_janus import JanusVQVAE

            model = JanusVQVAE(JanusVQVAEConfig(num_patches=2, **sizes, **CONVOLUTIONS))
        else:
            from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

            model = ChameleonVQVAE(ChameleonVQVAEConfig(resolution=32, **sizes, **CONVOLUTIONS))
    model.quantize.embedding.weight.data.normal_(std=0.5)
    model.eval()
    with torch.inference_mode():  # a spread of codes: vectors that the encoder gives, of lengths that differ
        images = tiny_images(64, seed=3).float() / 127.5 - 1
        if kind == "emu3":
            hidden = model.encoder(images[:, None].repeat(1, 4, 1, 1, 1)).transpose(1, 2)
        else:
            hidden = model.encoder(images)
        vectors = model.quant_conv(hidden).movedim(1, -1).flatten(0, -2)
        model.quantize.embedding.weight.copy_(vectors[torch.linspace(0, len(vectors) - 1, CODES).long()])
    return model


Saved = Callable[[str], tuple[Path, Any]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folder of a VQ model, and the model."""
    made: dict[str, tuple[Path, Any]] = {}

    def get(kind: str) -> tuple[Path, Any]:
        if kind not in made:
            model = build(kind)
            folder = tmp_path_factory.mktemp(kind)
            model.save_pretrained(folder)
            made[kind] = folder, model
        return made[kind]

    return get


def carried(folder: Path, kind: str, alone: Path, prefix: str = "model.vqmodel.") -> Path:
    """The VQ model as a language model carries it: in one of two files, beside much that is not read."""
    folder.mkdir(exist_ok=True)
    ours = {prefix + name: tensor for name, tensor in load_file(alone / "model.safetensors").items()}
    others = {"model.language_model.embed_tokens.weight": torch.zeros(9, 4), "lm_head.weight": torch.zeros(9, 4)}
    save_file(others, folder / "model-00001-of-00002.safetensors")
    save_file(ours, folder / "model-00002-of-00002.safetensors")
    files = {
        name: f"model-0000{number}-of-00002.safetensors" for number in (1, 2) for name in (others, ours)[number - 1]
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    vq_config = json.loads((alone / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "vq_config": vq_config}))
    return folder


@pytest.mark.parametrize("kind", PATCH)
def test_an_image_gets_the_codes_that_the_library_gives(kind: str, saved: Saved) -> None:
    folder, model = saved(kind)
    inner = load("cpu", path=str(folder))
    assert (inner.vocab_size, inner.patch_size) == (CODES, PATCH[kind])
    pixels = tiny_images(3, side=64)[..., :32]
    floats = pixels.float() / 127.5 - 1
    with torch.inference_mode():
        codes = inner.encode(pixels)
        if kind == "janus":  # as LlamaGen does: by direction
            vectors = F.normalize(model.quant_conv(model.encoder(floats)).movedim(1, -1), dim=-1)
            wanted = (vectors @ F.normalize(model.quantize.embedding.weight, dim=-1).T).argmax(-1)
            by_length = model.encode(floats).image_tokens.view_as(wanted)
            assert not torch.equal(by_length, wanted)  # the library's own, which its decoder would not draw as closely
        elif kind == "emu3":
            wanted = torch.stack(model.encode(floats, image_sizes=[(64, 32)] * 3).image_tokens)
        else:
            wanted = model.encode(floats).image_tokens.view(3, 4, 2)
    assert torch.equal(codes, wanted)
    assert len(codes.unique()) > 8


@pytest.mark.parametrize("kind", ["janus", "emu3"])
def test_codes_are_drawn_as_the_library_draws_them(kind: str, saved: Saved) -> None:
    folder, model = saved(kind)
    tokenizer = FixedRate(load("cpu", path=str(folder)))
    pixels = tiny_images(2)
    batch = tokenizer.encode(pixels)
    codes = torch.stack([torch.from_numpy(each.codes.astype("int64")) for each in batch])
    with torch.inference_mode():
        images = model.decode(codes if kind == "janus" else codes.view(2, 4, 4))
    wanted = ((images + 1) * 127.5).round().clamp(0, 255).byte()
    assert torch.equal(tokenizer.decode(batch), wanted)


@pytest.mark.parametrize("kind", ["janus", "emu3"])
def test_embedded_codes_are_drawn_as_codes_are(kind: str, saved: Saved) -> None:
    inner: Any = load("cpu", path=str(saved(kind)[0]))
    codes = torch.randint(CODES, (2, 3, 2), generator=torch.Generator().manual_seed(1))
    vectors = inner.embed(codes)
    assert vectors.shape[:1] + vectors.shape[2:] == codes.shape
    drawn = inner.decode_embedded(vectors)
    assert drawn.shape == (2, 3, 3 * inner.patch_size, 2 * inner.patch_size)
    assert torch.equal(drawn, inner.decode(codes, *drawn.shape[2:]))


def test_chameleon_has_no_way_back(saved: Saved) -> None:
    tokenizer = FixedRate(load("cpu", path=str(saved("chameleon")[0])), name="transformers")
    assert not tokenizer.can_decode
    batch = tokenizer.encode(tiny_images(1))
    with pytest.raises(ConfigError, match="transformers has no decode"):
        tokenizer.decode(batch)


def test_a_clip_through_emu3(saved: Saved) -> None:
    folder, model = saved("emu3")
    tokenizer = FixedRate(load("cpu", path=str(folder)))
    pixels = tiny_images(2 * 8, side=64)[..., :16].reshape(2, 8, 3, 64, 16)  # taller than the library's `encode` can
    batch = tokenizer.encode_clips(pixels)
    assert [(tuple(each.grid), each.num_frames) for each in batch] == [((2, 8, 2), 8)] * 2
    with torch.inference_mode():
        floats = pixels.float() / 127.5 - 1
        wanted = torch.stack(model.encode(floats, image_sizes=[(1024, 1024)] * 2).image_tokens)  # larger than any side
        frames = model.decode(wanted)
    assert [each.codes.tolist() for each in batch] == wanted.flatten(1).tolist()
    assert torch.equal(tokenizer.decode_clips(batch), ((frames + 1) * 127.5).round().clamp(0, 255).byte())
    with pytest.raises(ConfigError, match="clips have 6 frames; this model takes multiples of 4") as refused:
        tokenizer.encode_clips(pixels[:, :6])
    assert refused.value.remedy == "set video.frames_per_clip to 8"


@pytest.mark.parametrize("kind", PATCH)
def test_codes_do_not_depend_on_the_batch(kind: str, saved: Saved) -> None:
    inner = load("cpu", path=str(saved(kind)[0]))
    pixels = tiny_images(5)
    with torch.inference_mode():
        assert torch.equal(inner.encode(pixels)[3:4], inner.encode(pixels[3:4]))


@pytest.mark.parametrize(
    ("kind", "prefix"), [("janus", "model.vqmodel."), ("chameleon", "model.vqmodel."), ("emu3", "vqmodel.")]
)
def test_a_model_is_found_in_the_one_that_carries_it(kind: str, prefix: str, saved: Saved, tmp_path: Path) -> None:
    alone = saved(kind)[0]
    inner = load("cpu", path=str(carried(tmp_path / "whole", kind, alone, prefix)))
    assert inner.identity == load("cpu", path=str(alone)).identity


def test_only_the_files_of_the_vq_model_come_from_the_hub(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = saved("chameleon")[0]
    repository = carried(tmp_path / "sub", "chameleon", alone)
    fetched = []

    def hf_hub_download(*args: Any, **kwargs: Any) -> str:
        called = inspect.signature(real_download).bind(*args, **kwargs).arguments
        assert (called["repo_id"], called["revision"]) == ("owner/model", "v1")
        fetched.append(called["filename"])
        return str(tmp_path / called["filename"])

    def list_repo_files(*args: Any, **kwargs: Any) -> list[str]:
        inspect.signature(real_listing).bind(*args, **kwargs)
        return ["README.md", *(f"sub/{each.name}" for each in repository.iterdir())]

    real_download, real_listing = huggingface_hub.hf_hub_download, huggingface_hub.list_repo_files
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
    monkeypatch.chdir(tmp_path)
    inner = load("cpu", path="owner/model", revision="v1", subfolder="sub")
    assert inner.identity == load("cpu", path=str(alone)).identity
    assert sorted(set(fetched)) == [
        "sub/config.json",
        "sub/model-00002-of-00002.safetensors",
        "sub/model.safetensors.index.json",
    ]


def test_a_hub_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> list[str]:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", refuse)
    with pytest.raises(ConfigError, match=r"owner/model: there is no such folder here, and the .* hub says: no route"):
        load("cpu", path="owner/model")


class Trap:
    """Runs when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "vq_ds16_c2i.pt", "vqgan.ckpt"])
def test_a_pickle_is_refused_unread(name: str, saved: Saved, tmp_path: Path) -> None:
    shutil.copy(saved("janus")[0] / "config.json", tmp_path)
    sprung = tmp_path / "sprung"
    (tmp_path / name).write_bytes(pickle.dumps(Trap(sprung)))
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ConfigError, match=r"a pickle, which can run any code when it is read") as refused:
            load("cpu", path=str(path))
        assert name in str(refused.value)
        assert "safetensors" in str(refused.value.remedy)
    assert not sprung.exists()


def test_a_library_that_is_missing_says_how_to_install_it(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(saved("janus")[0])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="needs transformers, which cannot be loaded") as refused:
        load("cpu", path=folder)
    assert refused.value.remedy == "pip install 'tatok[transformers]'"


def test_weights_that_do_not_fit_are_named(saved: Saved, tmp_path: Path) -> None:
    folder = tmp_path / "janus"
    shutil.copytree(saved("janus")[0], folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name != "quant_conv.bias"}
    kept["encoder.extra"] = torch.zeros(1)
    kept["loss.discriminator"] = torch.zeros(1)  # of no child that the model has: may be left over
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"do not fit: encoder\.extra is unknown; quant_conv\.bias is missing$"):
        load("cpu", path=str(folder))
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"has 0 tensors named \.\.\.quantize\.embedding\.weight"):
        load("cpu", path=str(folder))
    (folder / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(ConfigError, match=r"model\.safetensors is damaged or not a safetensors file"):
        load("cpu", path=str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no model\.safetensors; it has config\.json"):
        load("cpu", path=str(folder))


def test_what_is_no_such_model_is_refused(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="is of model_type 'llama'; this adapter knows chameleon, emu3, janus"):
        load("cpu", path=str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is not valid JSON"):
        load("cpu", path=str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match="is not there, or empty"):
        load("cpu", path=str(tmp_path))
    for wrong in ("/no/such/folder", "a/b/c", "s3://bucket/model"):
        with pytest.raises(ConfigError, match="is no folder here, nor the owner/name"):
            load("cpu", path=wrong)
    folder = str(saved("janus")[0])
    with pytest.raises(ConfigError, match="revision is for the Hugging Face hub"):
        load("cpu", path=folder, revision="main")
    with pytest.raises(ConfigError, match="device is 'cuda:99', but torch sees no CUDA device"):
        load("cuda:99", path=folder)
    with pytest.raises(ConfigError, match="precision is 'half'"):
        load("cpu", path=folder, precision="half")  # type: ignore[arg-type]


def test_the_identity_follows_what_fixes_the_codes(saved: Saved, tmp_path: Path) -> None:
    folder = saved("janus")[0]
    shutil.copytree(folder, tmp_path / "copy")
    shutil.copytree(folder, tmp_path / "other")
    tensors = load_file(folder / "model.safetensors")
    tensors["quant_conv.bias"] = tensors["quant_conv.bias"] + 1
    save_file(tensors, tmp_path / "other" / "model.safetensors")

    def identity(path: Path) -> dict[str, str]:
        return dict(load("cpu", path=str(path)).identity)

    assert identity(folder) == identity(tmp_path / "copy")
    assert identity(folder)["weights_sha256"] != identity(tmp_path / "other")["weights_sha256"]
    named = [load_tokenizer("transformers", options={"path": str(folder)}, precision=each) for each in PRECISIONS]
    assert len({each.fingerprint for each in named}) == len(PRECISIONS)


def test_half_precision_is_only_for_the_networks(saved: Saved) -> None:
    folder = str(saved("janus")[0])
    pixels: Tensor = tiny_images(8)
    with torch.inference_mode():
        exact, half = (load("cpu", path=folder, precision=each).encode(pixels) for each in PRECISIONS)
    assert half.shape == exact.shape
    assert (half == exact).float().mean() > 0.5  # near-ties fall elsewhere, the rest does not
