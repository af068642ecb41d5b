"""The commands that make and measure checkpoints: train, adapt, calibrate, eval, distance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tatok.jobs.interruption import resumable
from tatok.jobs.job_file import SetOption, TokenizerName, TokenizerSettings, tokenizer_options
from tatok.jobs.verbosity import Quiet
from tatok.schemas.errors import ConfigError

if TYPE_CHECKING:
    from tatok.schemas.settings_file import SettingsFile

__all__ = ["adapt", "calibrate", "distance", "evaluate", "train"]

DISTANCE_BATCH = 64

Photos = Annotated[
    list[str],
    typer.Argument(
        metavar="PHOTOS...",
        help="Held-out photos: WebDataset tars, Parquet files or folders of images (globs, brace patterns).",
    ),
]
CheckpointOption = Annotated[str | None, typer.Option(help="Checkpoint folder, or its URL; default: the bundled one.")]
Device = Annotated[str | None, typer.Option(help="torch device; default: cuda where there is one, else cpu.")]
NumWorkers = Annotated[
    int, typer.Option(min=1, help="Processes that share each batch, by Ray Train: a GPU each where there are any.")
]
Address = Annotated[
    str | None, typer.Option(envvar="RAY_ADDRESS", help="Ray cluster for several workers; default: a local Ray.")
]
ImageSize = Annotated[int, typer.Option(min=1, help="Side of the centre crop, a multiple of the patch.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use the first so many photos only.")]
Features = Annotated[
    str,
    typer.Option(help="Network of the set distances: mobilenet, efficientnet (the training loss's) or a .pt file."),
]
CriterionOption = Annotated[
    Literal["entropy", "surprisal", "content", "distance", "residual"] | None,
    typer.Option(help="DTF criterion; default: the checkpoint's."),
]
TextureOption = Annotated[
    float | None,
    typer.Option(
        help="Patches with more texture than so many bits a pixel value are kept, too; 0: none for its texture; "
        "default: the checkpoint's."
    ),
]


Images = Annotated[
    list[str] | None,
    typer.Option(help="Photos to train on: tars, Parquet files, folders (globs, brace patterns). May be repeated."),
]
Heldout = Annotated[list[str] | None, typer.Option(help="Photos for validation. May be repeated.")]
Output = Annotated[str | None, typer.Option(help="Folder or URL of the run; its checkpoint lies there.")]
Check = Annotated[
    bool, typer.Option("--check", help="Look at everything the run needs, decode every photo, and end there.")
]


@resumable()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="Training file (YAML), or the name of a bundled recipe, such as train-photos-256.",
        ),
    ],
    images: Images = None,
    heldout: Heldout = None,
    output: Output = None,
    assignments: SetOption = None,
    check: Check = False,
    device: Device = None,
    start_from: Annotated[
        str | None, typer.Option(help="Checkpoint folder, or its URL, whose weights to start from.")
    ] = None,
    num_workers: NumWorkers = 1,
    address: Address = None,
    quiet: Quiet = False,
) -> None:
    """Train a TaTok checkpoint; the same command again resumes where the last run stopped.

    The options override the recipe. What would end the run later is said before its first step. The output may be any
    fsspec URL. The recipe does not change with the number of workers, and neither does the saved state: a run may
    resume with another number.
    """
    from tatok.examples import recipe_path
    from tatok.schemas.settings_file import read_settings

    settings = read_settings(recipe_path(recipe))
    settings.override_with(assignments or [])
    _override(settings, {"photos": images, "heldout": heldout, "output": output})

    from tatok.jobs.training import check_recipe, train_by
    from tatok.training.config import TrainingConfig

    config = settings.validated(TrainingConfig)
    if check:
        check_recipe(config, device=device, start_from=start_from, num_workers=num_workers)
        return
    from tatok.training.run import train as run

    train_by(config, run, device=device, start_from=start_from, num_workers=num_workers, address=address, quiet=quiet)


def _override(settings: SettingsFile, options: Mapping[str, object]) -> None:
    for name, value in options.items():
        if value is not None:
            settings.override(name, value, place=f"the option for {name}")


@resumable()
def adapt(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="[RECIPE]", help="Training file (YAML); the options override it.", show_default=False),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="The frozen tokenizer: my_tokenizer.py:load, or transformers, diffusers, torchscript."),
    ] = None,
    tokenizer_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What its function is given beside the device. May be repeated."),
    ] = None,
    autoencoder: Annotated[
        str | None,
        typer.Option(help="A frozen continuous autoencoder in its place: diffusers, or my_autoencoder.py:load."),
    ] = None,
    autoencoder_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What its function is given beside the device. May be repeated."),
    ] = None,
    images: Images = None,
    heldout: Heldout = None,
    output: Output = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the crops of the stages that come without a file, in pixels.")
    ] = None,
    assignments: SetOption = None,
    check: Check = False,
    device: Device = None,
    start_from: Annotated[str | None, typer.Option(help="Adapted checkpoint whose weights to start from.")] = None,
    num_workers: NumWorkers = 1,
    address: Address = None,
    quiet: Quiet = False,
) -> None:
    """Give a frozen fixed-rate tokenizer global tokens, a prior and Dynamic Token Filtering.

    Its encoder, codebook and decoder stay as they are. The checkpoint names it by its identity, and is used as any
    other: `tatok tokenize --checkpoint`, `calibrate`, `eval`. The same command again resumes where it stopped. Over a
    continuous autoencoder TaTok codes its latents in place of pixels; the recipe is then train-latents-256 unless one
    is named, and is what `tatok train` takes.
    """
    from tatok.examples import recipe_path
    from tatok.schemas.settings_file import SettingsFile, parse_assignment, read_settings

    if autoencoder is not None and (tokenizer is not None or image_size is not None):
        raise ConfigError("--autoencoder goes with neither --tokenizer nor --image-size; leave them out")
    if autoencoder is not None and recipe is None:
        recipe, heldout = recipe_path("train-latents-256"), heldout or []
    settings = read_settings(recipe) if recipe is not None else SettingsFile(origin="the command line")
    if autoencoder is not None:  # a recipe's options are those of its own
        settings.override("latents.autoencoder", autoencoder, place="the option for autoencoder")
        settings.override("latents.autoencoder_options", {}, place="the option for autoencoder")
    settings.override_with(assignments or [])
    of_photos = {"photos": images, "heldout": heldout, "output": output}
    _override(settings, {"tokenizer": tokenizer, **of_photos, "image_size": image_size})
    for assignment in tokenizer_option or []:
        name, value = parse_assignment(assignment, "--tokenizer-option")
        settings.override(f"tokenizer_options.{name}", value, place=f"--tokenizer-option {name}")
    for assignment in autoencoder_option or []:
        name, value = parse_assignment(assignment, "--autoencoder-option")
        settings.override(f"latents.autoencoder_options.{name}", value, place=f"--autoencoder-option {name}")

    from tatok.adaptation.run import train_adapted, training_config
    from tatok.adaptation.settings import AdaptationConfig
    from tatok.jobs.training import check_recipe, train_by
    from tatok.training.config import TrainingConfig
    from tatok.training.run import train as train_over_latents

    is_over_latents = settings.values.get("latents") is not None
    run = train_over_latents if is_over_latents else train_adapted
    if is_over_latents:
        config = settings.validated(TrainingConfig)
    else:
        config = training_config(settings.validated(AdaptationConfig))
    if check:
        check_recipe(config, device=device, start_from=start_from, num_workers=num_workers)
        return
    train_by(config, run, device=device, start_from=start_from, num_workers=num_workers, address=address, quiet=quiet)


def calibrate(
    photos: Photos,
    tokens: Annotated[float, typer.Option(help="Wanted mean number of tokens an image, globals included.")],
    checkpoint: CheckpointOption = None,
    criterion: CriterionOption = None,
    texture_bits: TextureOption = None,
    image_size: ImageSize = 256,
    limit: Limit = None,
    device: Device = None,
    write: Annotated[bool, typer.Option("--write", help="Write it into the config.json of --checkpoint.")] = False,
) -> None:
    """Find the DTF threshold at which held-out photos keep a wanted mean number of tokens."""
    from tatok.checkpoint_files import check_checkpoint

    if write and "://" in str(checkpoint):
        raise ConfigError(
            f"--write changes a folder of this machine, and {checkpoint} is a URL",
            remedy="copy it to a folder, and put it back when it is written",
        )
    if checkpoint is not None:
        check_checkpoint(checkpoint)  # before torch is imported

    from tatok.evaluation.calibration import calibrate as find
    from tatok.jobs.evaluation import check_writable, encoded, loaded
    from tatok.model.checkpoint import default_checkpoint, write_dtf

    if write and checkpoint is None:  # said before the work
        raise ConfigError(
            "--write changes a checkpoint; without --checkpoint that is the bundled one, a part of the installation",
            remedy=f"copy {default_checkpoint()} to a folder of your own, and name it by --checkpoint",
        )
    if write:
        check_writable(str(checkpoint))
    tokenizer, files = loaded(photos, checkpoint, device, image_size, tokens)
    settings = tokenizer.dtf.with_criterion(criterion)
    if texture_bits is not None:
        settings = replace(settings, texture_bits=texture_bits)
    photos_at_full_rate = encoded(tokenizer.with_dtf(settings), files, image_size, limit)
    found = find(photos_at_full_rate, tokens, settings)
    print(
        f"{found.num_images} photos: threshold {found.dtf.threshold:g} ({found.dtf.criterion}, "
        f"{found.dtf.threshold_kind}) keeps {found.mean_tokens:.2f} tokens on average "
        f"({found.min_tokens} to {found.max_tokens})"
    )
    if write:
        write_dtf(Path(str(checkpoint)), found.dtf)
        print(f"written to {checkpoint}")
    else:
        others = "" if texture_bits is None else f" --texture-bits {texture_bits:g}"
        print(f"use it with: tatok tokenize --threshold {found.dtf.threshold:g}{others} ..., or keep it with --write")


def evaluate(
    photos: Photos,
    tokens: Annotated[float, typer.Option(help="Mean tokens an image at which policies are compared.")] = 56,
    checkpoint: CheckpointOption = None,
    own: TokenizerName = None,
    own_options: TokenizerSettings = None,
    image_size: ImageSize = 256,
    limit: Limit = None,
    device: Device = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="Compare the policies that match this name or pattern only, as in 'DTF*'; may be repeated."),
    ] = None,
    all_policies: Annotated[
        bool, typer.Option("--all", help="Compare every policy that DTF has to beat, too; takes minutes on a CPU.")
    ] = False,
    features: Features = "mobilenet",
    distances: Annotated[
        bool, typer.Option("--distances/--no-distances", help="Measure Fréchet and kernel distances too.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Measure reconstruction on held-out photos: at full rate, as DTF is set, and from the globals alone.

    With --all or --policy, also under the policies that DTF has to beat at equal tokens. DTF's thresholds are
    calibrated on these photos for the wanted mean. PSNR is the mean over images, in dB; `pooled` is that of the mean
    squared error over all images. `perceptual` is a MobileNetV2 feature distance times 1000, lower is better. `kernel`
    (times 1000, with its deviation over subsets) and `Fréchet` are distances of all rebuilt photos to the originals;
    they depend on the network, and only the published Inception weights (--features FILE) give figures that compare
    with published FIDs. Fréchet needs more photos than the network has features. Bits are codes alone, then with
    positions where a decoder must be told them. `rank` is the rank correlation of token counts with PNG sizes. Then:
    quality by quartile of PNG size, codebook use, and the prior's calibration.
    """
    from tatok.checkpoint_files import check_checkpoint
    from tatok.evaluation.requirements import check_evaluation, require_installed
    from tatok.jobs.evaluation import encoded, evaluate_own, loaded
    from tatok.jobs.text.evaluation import evaluation_text
    from tatok.statistics.json_text import json_text

    if all_policies and policy:
        raise ConfigError("--all and --policy exclude each other; leave one out")
    require_installed()
    if own is not None:
        if checkpoint is not None or all_policies or policy:
            raise ConfigError("--tokenizer stands alone: no checkpoint is asked, and no policy chooses its tokens")
        result = evaluate_own(
            own,
            tokenizer_options(own_options),
            photos,
            image_size=image_size,
            limit=limit,
            device=device,
            features=features if distances else None,
        )
        print(json_text(result) if as_json else evaluation_text(result), end="")
        return
    if checkpoint is not None:
        check_checkpoint(checkpoint)  # before torch is imported, and what else takes its time

    from tatok.evaluation.comparison import evaluate as score
    from tatok.evaluation.diagnostics import tokenizer_report
    from tatok.evaluation.distances import ImageFeatures, load_features
    from tatok.evaluation.policies import FULL_RATE, GLOBALS_ONLY, SHIPPED, standard_policies
    from tatok.jobs.text.evaluation import EvaluationResult

    check_evaluation()
    tokenizer, files = loaded(photos, checkpoint, device, image_size, tokens)
    patterns = None if all_policies else policy or [FULL_RATE, f"{SHIPPED}*", GLOBALS_ONLY]
    policies = standard_policies(tokenizer.dtf, tokenizer.num_global, tokens, patterns=patterns)
    network = load_features(features) if distances else None
    at_full_rate = encoded(tokenizer, files, image_size, limit)
    references = ImageFeatures(network, at_full_rate.pixels, tokenizer.device) if network else None
    result = EvaluationResult(
        num_images=len(at_full_rate),
        image_size=image_size,
        tokens=tokens,
        weights_sha256=tokenizer.identity["weights_sha256"],
        features=features if distances else None,
        scores=score(at_full_rate, policies, features=references),
        tokenizer=tokenizer_report(at_full_rate),
    )
    print(json_text(result) if as_json else evaluation_text(result), end="")


def distance(
    reference: Annotated[str, typer.Argument(help="Real images: a tar, a Parquet file or a folder (or a pattern).")],
    images: Annotated[str, typer.Argument(help="Images to judge: a tar, a Parquet file or a folder (or a pattern).")],
    features: Features = "mobilenet",
    image_size: Annotated[
        int | None, typer.Option(help="Bring all to centre crops of this side; default: that of the first of IMAGES.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first so many images of each set only.")] = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Measure how far one set of images lies from another: Fréchet and kernel distance.

    The network decides what the figures mean. Only the published Inception weights compare with published FIDs: give
    their TorchScript file with --features. Compare Fréchet distances of equally many images only; below about 1,300
    images (or fewer than the network has features: then it is left out) read the kernel distance.
    """
    from tatok.evaluation.requirements import require_installed

    require_installed("torchmetrics")
    from tatok.device import device_named
    from tatok.evaluation.distances import image_distances, load_features
    from tatok.jobs.text.evaluation import DistanceResult, distance_text
    from tatok.model.pixels import in_batches
    from tatok.statistics.json_text import json_text
    from tatok.training.photos import centre_crops, shorter_side
    from tatok.training.requirements import readable_photos

    chosen = str(device_named(device))
    network = load_features(features)
    reference_files, image_files = readable_photos([reference]), readable_photos([images])
    side = image_size or shorter_side(image_files)
    found = image_distances(
        in_batches(centre_crops(reference_files, side, limit), DISTANCE_BATCH),
        in_batches(centre_crops(image_files, side, limit), DISTANCE_BATCH),
        network,
        device=chosen,
    )
    result = DistanceResult(reference=reference, images=images, features=features, image_size=side, distances=found)
    print(json_text(result) if as_json else distance_text(result), end="")
