"""Lists of URIs as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.planning.uri_lists import listed_files
from tatok.pipeline.readers.file_groups import unpack_group
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import Reject, SourceFile


def listed(folder: Path, name: str, text: str | bytes, image_field: str | None = None) -> list[SourceFile]:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(listed_files(str(path), image_field))


def test_text(tmp_path: Path) -> None:
    files = listed(tmp_path, "l.txt", "\ufeff# comment\r\na.jpg\r\n\n  https://h/b.jpg \ns3://b/c d.jpg")
    assert [file.uri for file in files] == [f"{tmp_path}/a.jpg", "https://h/b.jpg", "s3://b/c d.jpg"]
    assert [file.key for file in files] == ["a.jpg", "https://h/b.jpg", "s3://b/c d.jpg"]
    assert [file.index for file in files] == [0, 1, 2]
    assert {file.num_bytes for file in files} == {None}


def test_csv_columns(tmp_path: Path) -> None:
    [one, two] = listed(tmp_path, "l.csv", 'id,URL,Caption,cls,w\n7,a.jpg,"two\nlines, a ""quote""",3,10\n8,b.jpg,,,\n')
    assert (one.key, one.uri) == ("7", f"{tmp_path}/a.jpg")
    assert dict(one.attachments) == {"txt": 'two\nlines, a "quote"', "cls": "3", "json": '{"w": "10"}'}
    assert (two.key, two.attachments) == ("8", ())
    [three] = listed(tmp_path, "l.tsv", "file_name\ttext\nc.png\twords\n")
    assert (three.uri, dict(three.attachments)) == (f"{tmp_path}/c.png", {"txt": "words"})


def test_json_lines(tmp_path: Path) -> None:
    [one, two] = listed(
        tmp_path, "l.jsonl", '{"uri": "a.jpg", "label": 3, "n": [1]}\n\n{"path": "b.jpg", "text": "t"}\n'
    )
    assert dict(one.attachments) == {"cls": "3", "json": '{"n": [1]}'}
    assert (two.uri, dict(two.attachments)) == (f"{tmp_path}/b.jpg", {"txt": "t"})


def test_image_field_names_the_column(tmp_path: Path) -> None:
    [file] = listed(tmp_path, "l.csv", "url,thumb\na.jpg,b.jpg\n", "thumb")
    assert file.uri == f"{tmp_path}/b.jpg"


def test_an_address_that_is_missing_is_rejected_later(tmp_path: Path) -> None:
    [one, two] = listed(tmp_path, "l.csv", "url,caption\n,words\nb.jpg,words\n")
    assert one.uri.startswith("unreadable:")
    assert (one.key, two.key) == ("row 0", "b.jpg")


def test_a_signature_goes_no_further_than_the_list(tmp_path: Path) -> None:
    signed = "https://h/a.{}?X-Amz-Credential=PLANTED&X-Amz-Signature=PLANTED"
    path = tmp_path / "l.txt"
    path.write_text(f"{signed.format('jpg')}\n{signed.format('mp4')}\n")
    [shard] = plan_shards([str(path)])
    rejects = list(read_samples(shard, ReadOptions(max_sample_bytes=100)))
    assert [(each.key, each.reason) for each in rejects if isinstance(each, Reject)] == [
        ("https://h/a.jpg", "signed_uri"),
        ("https://h/a.mp4", "signed_uri"),
    ]
    assert "PLANTED" not in f"{list(unpack_group(shard))} {rejects}"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "words,more\na,b\n", "words, more"),
        ("l.csv", "", "columns"),
        ("l.jsonl", '{"uri": "a.jpg"}\nnonsense\n', "line 2"),
        ("l.jsonl", '["a.jpg"]\n', "one object a line"),
        ("l.jsonl", '{"words": 1}\n', "line 1"),
        ("l.txt", b"\xff\xfe\x00a", "UTF-8"),
    ],
)
def test_a_list_that_cannot_be_understood_is_named(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        listed(tmp_path, name, text)
    assert name in str(caught.value)


def test_the_same_address_twice_is_two_samples(tmp_path: Path) -> None:
    files = listed(tmp_path, "l.csv", "url,caption\na.jpg,one\na.jpg,two\n")
    assert len({(file.uri, file.index) for file in files}) == 2
