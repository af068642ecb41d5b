"""The commands of the reference generator: train it on a tokenized dataset, sample images from it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tatok.jobs.exit_codes import TRAIN_EPILOG
from tatok.jobs.interruption import resumable
from tatok.jobs.verbosity import Quiet
from tatok.schemas.records import count_text

if TYPE_CHECKING:
    from tatok.generator.checkpoint import GeneratorCheckpoint
    from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["generator"]

generator = typer.Typer(no_args_is_help=True, help="Train the reference generator on tokens, and sample images.")
Device = Annotated[str | None, typer.Option(help="torch device; default: cuda where there is one, else cpu.")]


@generator.command(epilog=TRAIN_EPILOG)
@resumable()
def train(
    data: Annotated[str, typer.Argument(metavar="DATASET", help="Folder or URL of a tokenized dataset.")],
    output: Annotated[
        str, typer.Option("-o", "--output", help="Folder or URL for the checkpoint, the state and figures.")
    ],
    steps: Annotated[int | None, typer.Option(help="Budget: so many optimizer steps.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget: so many training tokens, padding not counted.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Budget: so many seconds in steps, evaluation excluded.")
    ] = None,
    heldout: Annotated[str | None, typer.Option(help="Dataset whose bits an image are measured at the end.")] = None,
    unconditional: Annotated[bool, typer.Option("--unconditional", help="Train without the labels.")] = False,
    width: Annotated[int, typer.Option(help="Width of the transformer.")] = 256,
    num_layers: Annotated[int, typer.Option(help="Layers of the transformer.")] = 6,
    num_heads: Annotated[int, typer.Option(help="Attention heads of a layer.")] = 4,
    batch_tokens: Annotated[int, typer.Option(help="Tokens a step, padding included.")] = 8192,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Run the transformer in bfloat16.")] = False,
    seed: Annotated[int, typer.Option(help="Of the weights, the order of rows and the class dropout.")] = 0,
    device: Device = None,
    save_every_steps: Annotated[int, typer.Option(help="Steps between two saved states.")] = 500,
    log_every_steps: Annotated[int, typer.Option(help="Steps between two records of figures.")] = 50,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write figures for TensorBoard, too, into OUTPUT/tensorboard.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a class-conditional generator on a tokenized dataset; the same command again resumes where it stopped.

    The classes are the labels of the dataset. Give one budget: --steps, --tokens or --seconds.
    """
    from tatok.device import device_named
    from tatok.generator.recipe import GeneratorRecipe
    from tatok.generator.training import train_generator

    recipe = GeneratorRecipe(
        steps=steps,
        tokens=tokens,
        seconds=seconds,
        unconditional=unconditional,
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        batch_tokens=batch_tokens,
        learning_rate=learning_rate,
        precision="bfloat16" if bfloat16 else "float32",
        seed=seed,
    )
    spent, look = train_generator(
        data,
        output,
        recipe,
        device_named(device),
        heldout=heldout,
        log_every_steps=log_every_steps,
        save_every_steps=save_every_steps,
        tensorboard=tensorboard,
        is_quiet=quiet,
    )
    print(f"{spent.steps:,} steps, {spent.tokens:,} tokens of {spent.images:,} images in {spent.seconds:.1f} s")
    if look is not None:
        print(
            f"held out: {look.bits:.1f} bits an image ({look.code_bits:.1f} codes, {look.place_bits:.1f} places) "
            f"of {look.mean_tokens:.1f} tokens, over {look.num_images:,} images"
        )
    if not quiet:
        checkpoint = shlex.quote(f"{output.rstrip('/')}/checkpoint")
        print(f"next:\n  tatok generator sample {checkpoint} -o samples.png")


@generator.command()
def sample(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="The generator's checkpoint, a folder or URL.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A .png for one picture with a row a class, or a folder of images.")
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Checkpoint folder, or its URL, of the tokens' tokenizer; default: the bundled one."),
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Labels, with commas between; default: all.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 8,
    guidance: Annotated[float, typer.Option(help="Above 1: sharpen towards the class, at twice the work.")] = 1.0,
    temperature: Annotated[float, typer.Option(min=0, help="Below 1: likelier tokens; 0: the likeliest.")] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images sampled together.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = 0,
    device: Device = None,
) -> None:
    """Sample images from a generator, decoded by the tokenizer whose tokens it learned."""
    import time

    import numpy as np
    import torch
    from PIL import Image

    from tatok.generator.checkpoint import load_generator
    from tatok.jobs.pictures import write_whole
    from tatok.schemas.errors import ConfigError
    from tatok.tokenizer.tokenizer import Tokenizer

    loaded = load_generator(checkpoint)
    wanted = [label.strip() for label in classes.split(",")] if classes else list(loaded.classes)
    if not loaded.classes and (classes or guidance != 1.0):
        raise ConfigError(f"{checkpoint} was trained without labels; leave out --classes and --guidance")
    numbers = loaded.class_numbers(wanted) or [0]
    decoder = Tokenizer.load(tokenizer, device)
    _check_tokenizer(loaded, decoder, checkpoint)
    model = loaded.generator.to(decoder.device)
    random = torch.Generator(decoder.device).manual_seed(seed)
    everything = torch.tensor(numbers, device=decoder.device).repeat_interleave(count)
    images: list[np.ndarray] = []
    num_tokens, seconds = 0, 0.0
    for batch in everything.split(batch_size):
        started = time.perf_counter()
        sequences = model.sample(batch, guidance=guidance, temperature=temperature, generator=random)
        seconds += time.perf_counter() - started
        num_tokens += sum(sequence.num_tokens for sequence in sequences)
        images += list(decoder.decode(sequences).cpu().numpy())
    if output.suffix == ".png":
        rows = np.stack(images).reshape(len(numbers), count, *images[0].shape)
        sheet_HW3 = rows.transpose(0, 3, 1, 4, 2).reshape(len(numbers) * rows.shape[3], -1, 3)
        write_whole(output, Image.fromarray(np.ascontiguousarray(sheet_HW3)))
    else:
        for number, pixels in enumerate(images):
            label = wanted[number // count] if wanted else "image"
            plain = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in label)
            name = f"{numbers[number // count]:04}-{plain}-{number % count:04}.png"
            write_whole(output / name, Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))))
    print(
        f"{output}: {count_text(len(images), 'image')}, {num_tokens / len(images):.1f} tokens an image, "
        f"{len(images) / seconds:.2f} images a second (tokens alone)"
    )


def _check_tokenizer(loaded: GeneratorCheckpoint, tokenizer: Tokenizer, checkpoint: str) -> None:
    from tatok.schemas.errors import ConfigError

    found = tokenizer.identity["weights_sha256"]
    if found != loaded.tokenizer_weights_sha256:
        raise ConfigError(
            f"{checkpoint} learned tokens of the weights {loaded.tokenizer_weights_sha256[:16]}, but this tokenizer's "
            f"are {found[:16]}; name the tokenizer that made them with --tokenizer"
        )
