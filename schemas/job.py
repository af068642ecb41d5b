"""JobConfig: what one tokenization run shall do, validated once and saved with the output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, WithJsonSchema, field_validator, model_validator

from tatok.schemas.preprocessing import Preprocessing, Video
from tatok.schemas.secrets import REMEDY, credential_in_url, literal_credentials
from tatok.schemas.settings import Section
from tatok.schemas.settings_file import read_settings
from tatok.schemas.urls import text_of_path

__all__ = [
    "DTFOverride",
    "JobConfig",
    "Limits",
    "Output",
    "Preprocessing",
    "Resources",
    "load_job",
]


# A single source may stand alone: the validator of `source` makes a tuple of it before pydantic's schema looks.
_ONE_OR_MORE = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}


class DTFOverride(Section):
    """DTF settings that differ from the checkpoint's own; null leaves the checkpoint's."""

    threshold: float | None = Field(default=None, ge=0, description="DTF's threshold; see `tatok calibrate`.")
    texture_bits: float | None = Field(
        default=None,
        ge=0,
        description="Patches with more texture than so many bits a pixel value are kept, too; 0: none for its texture.",
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="Upper bound on the tokens of an image, globals included."
    )
    min_tokens: int | None = Field(
        default=None, ge=0, description="Lower bound on the tokens of an image, globals included."
    )
    temporal: bool | None = Field(
        default=None,
        description="Whether frames of a clip may follow the frame before them; false codes each as an image.",
    )


class Resources(Section):
    """How the work is spread."""

    num_tokenizers: int | None = Field(
        default=None,
        ge=1,
        description="Tokenizer actors; default: one a GPU; without GPUs one a CPU, or a single one beside decoders.",
    )
    num_decoders: int | None = Field(
        default=None,
        ge=0,
        description="Decoder processes in all; 0: each tokenizer decodes for itself. Default: the CPUs that the "
        "tokenizers leave, at least two; without GPUs 0.",
    )
    shards_in_flight: int | None = Field(
        default=None,
        ge=1,
        description="Shards that one tokenizer actor works on at a time, each with a decoder of its own; "
        "default: as many as keep every decoder busy; without decoders one.",
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Images, or clips, a tokenizer call; default: 256 on a GPU, 16 on CPUs. Fewer where two batches of "
        "them are more than max_bytes_in_flight, and where the device's memory does not suffice.",
    )
    max_bytes_in_flight: int = Field(
        default=256 << 20,
        ge=1 << 20,
        description="Bound on encoded and decoded bytes that one shard in flight holds, and a quarter of it on those "
        "that a process holds which helps with the shard.",
    )
    decode_timeout_s: float = Field(default=60.0, gt=0, description="A batch whose decoding takes longer is given up.")
    gpu_wait_s: float = Field(
        default=60.0,
        ge=0,
        description="How long a job that names no device waits for a first GPU of the cluster that RAY_ADDRESS names "
        "before its CPUs tokenize. With device cuda the job asks for GPUs and waits without end.",
    )
    lease_timeout_s: float = Field(
        default=600.0, gt=0, description="A tokenizer that comes no further with a shard for so long is replaced."
    )


class Limits(Section):
    """When a sample, or the whole run, is given up."""

    max_pixels: int = Field(
        default=178_956_970, ge=1, description="Larger images are rejected before they are decoded."
    )
    min_side: int = Field(default=16, ge=1, description="Images with a shorter side below this are rejected.")
    max_aspect_ratio: float | None = Field(
        default=None, ge=1, description="Images whose sides differ by more than this factor are rejected."
    )
    max_sample_bytes: int = Field(default=256 << 20, ge=1, description="Larger samples are rejected unread.")
    max_decode_bytes: int = Field(
        default=4 << 30,
        ge=64 << 20,
        description="Memory that one sample's decoding may take once its shard has cost a decoder process.",
    )
    max_reject_fraction: float = Field(
        default=0.5, ge=0, le=1, description="Above this share of rejects the run stops."
    )
    max_failed_shards: int = Field(default=100, ge=1, description="After so many failed shards the run stops.")


class Output(Section):
    """How parts are written."""

    patch_entropy: bool = Field(default=True, description="Store every position's entropy (float16), for heat maps.")
    patch_worth: bool = Field(
        default=False,
        description="Store what every position was worth to DTF (float16), for heat maps of what it kept.",
    )
    row_group_rows: int = Field(default=50_000, ge=1, description="Rows of a row group, which readers take at a time.")


class JobConfig(Section):
    """A tokenization job, as resolved from a job file and the command line; unknown keys are errors."""

    source: Annotated[tuple[str, ...], WithJsonSchema(_ONE_OR_MORE)] = Field(
        description="Paths, folders, globs, brace patterns or fsspec URLs of WebDataset tars, Parquet files, lists of "
        "URIs, images and videos."
    )
    output: str = Field(description="Folder or fsspec URL of the dataset.")
    checkpoint: str | None = Field(default=None, description="Checkpoint folder; default: the bundled checkpoint.")
    tokenizer: str | None = Field(
        default=None,
        description="A tokenizer of your own in place of a checkpoint: the function that makes it, as module:function "
        "or file.py:function (in the current folder, or beside the job file), or transformers, diffusers, torchscript.",
    )
    tokenizer_options: dict[str, JsonValue] = Field(
        default={},
        description="What that function is given beside the device, by name; an option that holds a credential is a "
        "reference, {env: NAME}.",
    )
    device: str | None = Field(
        default=None,
        description="cuda or cpu, or another kind of torch device, without a number; default: cuda where there is one, "
        "else cpu.",
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        default="float32",
        description="In which the model computes; each gives tokens of its own. tf32 is for GPUs alone, since Ampere.",
    )
    image_field: str | None = Field(
        default=None,
        description="Extension of the tar member to tokenize (e.g. 'jpg'), or name of the column of images or URIs; "
        "default: the sample's only image or video, the column that its type and name say.",
    )
    label_from_folder: bool = Field(
        default=False, description="The first folder below a folder source is the label of files without another."
    )
    preprocessing: Preprocessing = Preprocessing()
    video: Video = Video()
    dedup: Literal["none", "exact"] = Field(
        default="none",
        description="exact: of samples with the same bytes one is kept, the first by address and place; the source is "
        "read twice. Comes before the filter.",
    )
    filter: str | None = Field(
        default=None,
        description="A function, as module:function, that is given a sample's tatok.schemas.records.SampleFacts and "
        "returns whether to keep it, or a text that says why not.",
    )
    dtf: DTFOverride = DTFOverride()
    resources: Resources = Resources()
    limits: Limits = Limits()
    write: Output = Output()
    storage: dict[str, dict[str, JsonValue]] = Field(
        default={},
        description="fsspec's options by URL scheme, such as {s3: {endpoint_url: ..., anon: true}}; an option that "
        "holds a credential is a reference, {env: NAME}, which each process looks up in its own environment.",
    )

    @field_validator("source", mode="before")
    @classmethod
    def _one_source_may_stand_alone(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("source")
    @classmethod
    def _names_on_disks_as_text(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(text_of_path, value))

    @field_validator("output")
    @classmethod
    def _output_is_text(cls, value: str) -> str:
        if text_of_path(value) != value:
            raise ValueError(f"the name {text_of_path(value)!r} is not UTF-8; name the output otherwise")
        return value

    @field_validator("device")
    @classmethod
    def _no_number_of_a_device(cls, value: str | None) -> str | None:
        kind, _, number = (value or "").partition(":")
        if number and kind:
            raise ValueError(
                f"{value!r} names one device of a machine, but each tokenizer is given a GPU of its own, which it sees "
                f"as {kind}:0; say device: {kind}, how many by resources.num_tokenizers, and which by "
                "CUDA_VISIBLE_DEVICES where Ray starts"
            )
        return value

    @model_validator(mode="after")
    def _precision_of_the_device(self) -> Self:
        if self.precision == "tf32" and self.device not in (None, "cuda"):
            raise ValueError(f"precision is tf32, which {self.device} does not have; say device: cuda, or another one")
        return self

    @model_validator(mode="after")
    def _one_tokenizer(self) -> Self:
        if self.tokenizer is None:
            if self.tokenizer_options:
                raise ValueError("tokenizer_options are for a tokenizer of your own; name it as tokenizer")
            return self
        if self.checkpoint is not None:
            raise ValueError(
                f"checkpoint {self.checkpoint} is of tatok's own tokenizer, and the job names another one, "
                f"{self.tokenizer!r}; leave one of the two out"
            )
        given = [name for name, value in self.dtf if value is not None]
        if given:
            raise ValueError(
                f"dtf.{given[0]} is a setting of tatok's own tokenizer, of which {self.tokenizer!r} knows nothing; "
                "leave it out"
            )
        return self

    @field_validator("source", "output", "checkpoint")
    @classmethod
    def _no_credential_in_urls(cls, value: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
        for url in (value,) if isinstance(value, str) else value or ():
            found = credential_in_url(url)
            if found is not None:
                raise ValueError(
                    f"the URL holds a credential ({found}), which would be written to every part; {REMEDY}"
                )
        return value

    @field_validator("storage", "tokenizer_options")
    @classmethod
    def _credentials_by_reference(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        literal = list(literal_credentials(value, str(info.field_name)))
        if literal:
            raise ValueError(
                f"{', '.join(literal)} would be written to _run.json; {REMEDY}: "
                f"{literal[0].rpartition('.')[2]}: {{env: NAME}}"
            )
        return value


def load_job(path: str | Path) -> JobConfig:
    """Read and validate a YAML job file.

    Raises ConfigError, which names the file, and the line of each wrong key, where it cannot be read or does not
    validate.
    """
    return read_settings(path).validated(JobConfig)
