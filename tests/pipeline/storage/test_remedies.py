"""Remedies follow from what caused an error, whatever its words are."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from tatok.pipeline.storage.remedies import NO_PACKAGE_REMEDY, SILENT_REMEDY, access_remedy


class ClientError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__("told so")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class AzureError(Exception):
    """azure-core's and httpx's have a response with a number."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.response = SimpleNamespace(status_code=status)


class ServiceRequestError(Exception):
    pass


class NoCredentialsError(Exception):
    pass


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        (ClientError(403), "the credentials in use may not read there"),
        (ClientError(404), "check the spelling of the bucket and path"),
        (ClientError(401), "there are no usable credentials"),
        (AzureError(403), "the credentials in use may not read there"),
        (AzureError(404), "check the spelling of the bucket and path"),
        (ServiceRequestError(), SILENT_REMEDY),
        (NoCredentialsError(), "there are no usable credentials"),
        (ConnectionRefusedError(), SILENT_REMEDY),
        (TimeoutError(), SILENT_REMEDY),
        (ModuleNotFoundError("adlfs"), NO_PACKAGE_REMEDY),
    ],
)
def test_the_first_cause_decides(cause: Exception, remedy: str) -> None:
    error = FileNotFoundError(errno.ENOENT, "a 403 of somebody's credentials")
    error.__cause__ = cause
    assert str(access_remedy(error, "s3://photos/a.tar", "read")).startswith(remedy)


def test_a_folder_is_no_bucket() -> None:
    assert "permissions of the folder" in str(access_remedy(PermissionError(), "/data/out", "write"))
    assert access_remedy(FileNotFoundError(), "/data/a.tar", "read") == "check the spelling of the path"


def test_what_is_not_known_has_no_remedy() -> None:
    assert access_remedy(ClientError(500), "s3://photos/a.tar", "read") is None
    assert access_remedy(ValueError("permission denied"), "s3://photos/a.tar", "read") is None
