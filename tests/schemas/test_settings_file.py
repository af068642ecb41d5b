"""Job files: lines and nearest keys in errors, variables, overrides, and credentials that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig
from tatok.schemas.secrets import credential_in_url, is_signed_by_a_store, names_a_credential
from tatok.schemas.settings_file import SettingsFile, read_settings

START = "source: a.tar\noutput: o\n"


def read(tmp_path: Path, text: str, environment: dict[str, str] | None = None) -> SettingsFile:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return read_settings(path, environment=environment or {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "resources:\n  bath_size: 4\n",
            "line 4: resources.bath_size: no such setting; did you mean resources.batch_size?",
        ),
        ("video: {frames: 4}\n", "video.frames: no such setting; did you mean video.frames_per_clip?"),
        ("video: {clip_frames: 4}\n", "video.clip_frames: no such setting; did you mean video.frames_per_clip?"),
        ("video: {num_frames: 4}\n", "video.num_frames: no such setting; did you mean video.frames_per_clip?"),
        ("image_sze: 4\n", "line 3: image_sze: no such setting; did you mean preprocessing.image_size?"),
        ("\n\nbatch_size: 4\n", "line 5: batch_size: no such setting; did you mean resources.batch_size?"),
        ("resources: {xyzzy: 1}\n", "line 3: resources.xyzzy: no such setting; there are num_tokenizers"),
        ("limits:\n  max_pixels: many\n", "line 4: limits.max_pixels: Input should be a valid integer"),
        ("preprocessing:\n  background: [0,\n    0, 999x]\n", "line 5: preprocessing.background.2: "),
        ("device: cpu\ndevice: cuda\n", "line 4: device is set twice"),
    ],
)
def test_errors_name_line_and_nearest_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, START + text).validated(JobConfig)
    assert message in str(caught.value)


def test_variables_are_put_in(tmp_path: Path) -> None:
    text = (
        "source: ['s3://${BUCKET}/{0..3}.tar', '$${BUCKET}.tar']\noutput: ${OUT:-data/tokens}\n"
        "resources:\n  batch_size: ${BATCH}\nimage_field: '${BATCH}'\ndevice: ${NONE}\n"
    )
    job = read(tmp_path, text, {"BUCKET": "photos", "BATCH": "64", "NONE": "null"}).validated(JobConfig)
    assert job.source == ("s3://photos/{0..3}.tar", "${BUCKET}.tar")
    assert (job.output, job.resources.batch_size, job.image_field, job.device) == ("data/tokens", 64, "64", None)
    with pytest.raises(ConfigError, match=r"job\.yaml, line 2: the environment has no OUT; set it, or write"):
        read(tmp_path, "source: a\noutput: ${OUT}\n")


def test_a_variable_cannot_bring_structure(tmp_path: Path) -> None:
    job = read(tmp_path, "source: a\noutput: ${OUT}\n", {"OUT": "[a, b]"}).validated(JobConfig)
    assert job.output == "[a, b]"


def test_overrides_by_strength(tmp_path: Path) -> None:
    settings = read(tmp_path, START + "resources: {batch_size: 1, num_decoders: 7}\n")
    settings.override_from({"TATOK__RESOURCES__BATCH_SIZE": "2", "TATOK__DTF__THRESHOLD": "0.5", "TATOK_DEBUG": "1"})
    settings.override_with(["resources.batch_size=3", "storage.s3.anon=true", "source=[a.tar, b.tar]"])
    job = settings.validated(JobConfig)
    assert (job.resources.batch_size, job.resources.num_decoders, job.dtf.threshold) == (3, 7, 0.5)
    assert job.storage == {"s3": {"anon": True}}
    assert job.source == ("a.tar", "b.tar")
    settings.override_with(["resources.batch_size=none"])
    with pytest.raises(ConfigError, match=r"--set resources\.batch_size: resources\.batch_size: Input should be"):
        settings.validated(JobConfig)
    with pytest.raises(ConfigError, match="write NAME=VALUE"):
        settings.override_with(["resources.batch_size"])


@pytest.mark.parametrize(
    "text",
    [
        "storage: {s3: {secret: PLANTED}}\n",
        "storage: {s3: {client_kwargs: {aws_secret_access_key: PLANTED}}}\n",
        "storage: {az: {connection_string: AccountKey=PLANTED}}\n",
        "storage: {http: {headers: {Authorization: Bearer PLANTED}}}\n",
        "storage: {s3: {endpoint_url: 'http://user:PLANTED@host'}}\n",
        "storage: {s3: {secret: /PLANTED/base64}}\n",
        "storage: {az: {account_key: ~PLANTED}}\n",
        "storage: {http: {headers: [[Authorization, PLANTED]]}}\n",
        "storage: {http: {cookies: [PLANTED]}}\n",
        "checkpoint: s3://user:PLANTED@bucket/a\n",
        "checkpoint: https://PLANTED@host/a\n",
        "checkpoint: https://host/a?key=PLANTED\n",
        "checkpoint: https://host/a?apikey=PLANTED\n",
        "checkpoint: https://host/a?sv=2022&sig=PLANTED/base64\n",
        "checkpoint: https://host/a?X-Amz-Signature=PLANTED\n",
        "device: ${AWS_SECRET_ACCESS_KEY}\n",
    ],
)
def test_credentials_are_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="by reference") as caught:
        read(tmp_path, START + text, {"AWS_SECRET_ACCESS_KEY": "PLANTED"}).validated(JobConfig)
    assert "PLANTED" not in str(caught.value)


def test_references_and_ways_to_log_in_are_fine(tmp_path: Path) -> None:
    text = "storage:\n  s3: {secret: {env: MY_SECRET}, profile: p}\n  gs: {token: google_default}\n  az: {anon: true}\n"
    text += "  gcs: {token: /run/secrets/gcs.json}\n  sftp: {key_filename: a, private_key_path: /k}\n"
    job = read(tmp_path, START + text).validated(JobConfig)
    assert job.storage["s3"]["secret"] == {"env": "MY_SECRET"}


def test_what_looks_like_a_credential() -> None:
    names = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "account_key", "accountKey", "sas_token", "Authorization", "password")
    assert all(map(names_a_credential, names))
    assert not any(map(names_a_credential, ("TOKENS_BUCKET", "max_tokens", "monkey", "BUCKET", "endpoint_url")))
    assert credential_in_url("s3://b/{0..9}.tar") is None
    assert credential_in_url("https://h/a.tar?sig=abc") == "the parameter sig"
    assert credential_in_url("/data/a:b@c.tar") is None
    assert credential_in_url("abfs://photos@account.dfs.core.windows.net/a.tar") is None
    assert credential_in_url("https://h/download?key=photos/a.tar") is None


@pytest.mark.parametrize(
    ("url", "is_signed"),
    [
        ("https://b.s3.amazonaws.com/a.jpg?X-Amz-Algorithm=A&X-Amz-Signature=1", True),
        ("https://b.s3.amazonaws.com/a.jpg?AWSAccessKeyId=1&Signature=2&Expires=3", True),
        ("https://storage.googleapis.com/b/a.jpg?X-Goog-Signature=1", True),
        ("https://account.blob.core.windows.net/b/a.jpg?sv=2022&se=2&sig=3", True),
        ("https://d1.cloudfront.net/a.jpg?Expires=1&Signature=2&Key-Pair-Id=3", True),
        ("https://host/a.jpg?sig=3&token=1&size=large", False),
        ("s3://b/X-Amz-Signature=1.jpg", False),
        ("https://[broken/a.jpg?X-Amz-Signature=1", False),
    ],
)
def test_what_a_store_has_signed(url: str, is_signed: bool) -> None:
    assert is_signed_by_a_store(url) is is_signed
