"""Videos that are files of their own: brought to the local disk, for decoders seek in them."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tatok.pipeline.storage.source_file import source_error
from tatok.schemas.records import Sample
from tatok.schemas.urls import local_path, open_to_read

__all__ = ["content_digest", "local_video"]

_BLOCK_BYTES = 1 << 20


@contextmanager
def local_video(sample: Sample) -> Iterator[Sample]:
    """The sample with a `payload_uri` on this machine, if it has any; a copy is gone afterwards.

    Raises SourceError if the store fails.
    """
    if sample.payload_uri is None:
        yield sample
        return
    if "://" not in sample.payload_uri:
        yield replace(sample, payload_uri=local_path(sample.payload_uri))
        return
    with tempfile.NamedTemporaryFile(prefix="tatok-video-", suffix=f".{sample.extension}") as copy:
        try:
            with open_to_read(sample.payload_uri) as file:
                shutil.copyfileobj(file, copy, _BLOCK_BYTES)
            copy.flush()
        except Exception as error:  # every fsspec backend has exceptions of its own
            raise source_error(f"cannot read {sample.payload_uri}", error, sample.payload_uri) from error
        yield replace(sample, payload_uri=copy.name)


def content_digest(sample: Sample) -> bytes | None:
    """SHA-256 of the sample's bytes, wherever they are; None where its file is gone.

    Raises SourceError if the store fails.
    """
    digest = hashlib.sha256(sample.payload)
    if sample.payload_uri is not None:
        try:
            with open_to_read(sample.payload_uri) as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
        except FileNotFoundError:
            return None
        except Exception as error:  # every fsspec backend has exceptions of its own
            raise source_error(f"cannot read {sample.payload_uri}", error, sample.payload_uri) from error
    return digest.digest()
