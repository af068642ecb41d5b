"""Lists of URIs as people write them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tatok.pipeline.planning.list_lines import csv_rows
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


def captions(files: list[SourceFile]) -> list[str]:
    return [dict(file.attachments).get("txt", "") for file in files]


OPEN_QUOTES = ("a plain one", '"Mind the gap" sign', '"Hello, she said', "five", 'six 5" pipe', '"seven', "eight")


def test_quotes_in_tsv_are_characters_unless_they_are_around_a_field(tmp_path: Path) -> None:
    rows = [*OPEN_QUOTES, '"as pandas ""writes"" it"', '""', '"', '"a"b"', 'x "" y']
    text = "file_name\tcaption\n" + "".join(f"{n}.jpg\t{caption}\n" for n, caption in enumerate(rows))
    files = listed(tmp_path, "l.tsv", text)
    assert captions(files) == [*OPEN_QUOTES, 'as pandas "writes" it', "", '"', '"a"b"', 'x "" y']
    assert [file.key for file in files] == [f"{n}.jpg" for n in range(len(rows))]
    assert listed(tmp_path, "m.tsv", text.replace("\n", "\r\n")) == files, "lines may end with CR LF"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("url\tcaption\na.jpg\tone\n\nb.jpg\n", 4, "1 fields"),
        ("url\tcaption\na.jpg\tone\ttwo\n", 2, "3 fields"),
        ('url\tcaption\na.jpg\t"a\tb"\n', 2, "3 fields"),
        ('url\tcaption\na.jpg\t"two\nlines"\n', 3, "1 fields"),
        ("url\tcaption\na.jpg\tone\rb.jpg\ttwo\n", 2, "carriage return"),
        ("url\turl\na.jpg\tb.jpg\n", 1, "twice"),
    ],
)
def test_a_tsv_that_is_not_sure(text: str, line: int, what: str, tmp_path: Path) -> None:
    refused(tmp_path, "l.tsv", text, line, what)


def refused(folder: Path, name: str, text: str | bytes, line: int, what: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}, line {line}[,:] ") as caught:
        listed(folder, name, text)
    assert what in str(caught.value)
    assert ";" in str(caught.value), "and a remedy"


@pytest.mark.parametrize(
    ("rows", "line", "what"),
    [
        (('a.jpg,"Hello, she said', "b.jpg,five", "c.jpg,six"), 2, "line 3 is a row"),
        (('a.jpg,"Hello', 'b.jpg,"seven', "c.jpg,x"), 2, "neither around a field nor doubled"),
        (('a.jpg,"Hello', 'b.jpg,six 5"', "c.jpg,x"), 2, "line 3 is a row"),
        (('a.jpg,"Hello', "b.jpg,six", '"'), 2, "line 3 is a row"),
        (('a.jpg,"Hello', 'b.jpg,""', 'c.jpg,six 5"'), 2, "line 3 is a row"),
        (('a.jpg,"Hello', 'https://h/b?x=1,six 5"'), 2, "line 3 is a row"),
        (('a.jpg,six 5" pipe', "b.jpg,x"), 2, "line 3 is a row"),
        (('a.jpg,six 5" pipe',), 2, "neither around a field nor doubled"),
        (('a.jpg, "x"',), 2, "neither around a field nor doubled"),
        (('a.jpg,"x" y',), 2, "neither around a field nor doubled"),
        (("a.jpg,x", 'b.jpg,"seven'), 3, "never closed"),
        (('a.jpg,"x', "words", "more words"), 2, "never closed"),
        (('a.jpg,"two', 'lines","x" y'), 2, "on line 3"),
        (("a.jpg,x,y",), 2, "3 fields"),
        (("a.jpg,x", "", "", "b.jpg"), 5, "1 fields"),
        (('a.jpg,"two', 'lines"', "b.jpg"), 4, "1 fields"),
        (("a.jpg,x\rb.jpg,y",), 2, "carriage return"),
    ],
)
def test_a_csv_that_is_not_sure(rows: tuple[str, ...], line: int, what: str, tmp_path: Path) -> None:
    refused(tmp_path, "l.csv", "\n".join(("url,caption", *rows, "")), line, what)


def test_a_row_within_quotes_whose_address_comes_last(tmp_path: Path) -> None:
    refused(tmp_path, "l.csv", 'caption,url\n"Hello,a.jpg\nsix 5",b.jpg\n', 2, "line 2 is a row")
    [file] = listed(tmp_path, "l.csv", 'caption,url\n"two\nlines",b.jpg\n')
    assert captions([file]) == ["two\nlines"]


def test_a_lone_quote_is_found_before_the_rest_is_read(tmp_path: Path) -> None:
    """The row that follows it is enough: no field of all the rest is made."""
    lines = iter([(1, "url,caption"), (2, 'a.jpg,"x'), (3, "b.jpg,y")])
    rows = csv_rows(lines, "l.csv", lambda names: 0)
    assert next(rows) == ["url", "caption"]
    with pytest.raises(ConfigError, match="line 2"):
        next(rows)


_TEXTS = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
_CAPTIONS = _TEXTS | st.text(alphabet='",\n\r x', max_size=8)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(_CAPTIONS, max_size=8), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_csv_writers_write_is_read_as_it_was(
    rows: list[str], quoting: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """pandas, Excel and Python write so: captions of several lines, quotes, commas."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=quoting)
    writer.writerows([["url", "caption"], *([f"{n}.jpg", caption] for n, caption in enumerate(rows))])
    files = listed(tmp_path_factory.mktemp("csv"), "l.csv", text.getvalue())
    assert captions(files) == rows
    assert [file.index for file in files] == list(range(len(rows)))


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.text(alphabet='"", xy', max_size=6), min_size=1, max_size=6),
    name=st.sampled_from(["l.csv", "l.tsv"]),
)
@example(rows=['"', ',"""'], name="l.csv")  # one well-formed row, whose second line has a field more than the header
def test_no_row_is_swallowed_however_quotes_stand(
    rows: list[str], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every line is a row, or the list is refused: captions as somebody wrote them, without a thought of quotes."""
    delimiter = "," if name == "l.csv" else "\t"
    text = delimiter.join(("url", "caption")) + "\n"
    text += "".join(f"{n}.jpg{delimiter}{caption}\n" for n, caption in enumerate(rows))
    files, refusal = None, ""
    try:
        files = listed(tmp_path_factory.mktemp("quotes"), name, text)
    except ConfigError as error:
        refusal = str(error)
    if files is None:
        assert sum(f", line {n}, " in refusal for n in range(2, len(rows) + 2)) == 1, "it names a row"
    else:
        assert [file.key for file in files] == [f"{n}.jpg" for n in range(len(rows))]


def test_fields_of_any_size(tmp_path: Path) -> None:
    long = "word " * 400_000  # more than the csv module takes
    [of_csv] = listed(tmp_path, "l.csv", f'url,caption\na.jpg,"{long}\n{long}"\n')
    assert captions([of_csv]) == [f"{long}\n{long}"]
    [of_tsv] = listed(tmp_path, "l.tsv", f"url\tcaption\na.jpg\t{long}\n")
    assert captions([of_tsv]) == [long]


def test_an_index_without_a_name_as_pandas_writes_it(tmp_path: Path) -> None:
    [file] = listed(tmp_path, "l.csv", ",file_name,caption\n0,a.jpg,x\n")
    assert (file.key, dict(file.attachments)) == ("a.jpg", {"txt": "x"})


@pytest.mark.parametrize(
    ("name", "data", "line", "what"),
    [
        ("l.csv", "url,caption\na.jpg,x\nb.jpg,caf\xe9\n".encode("latin-1"), 3, "0xe9"),
        ("l.txt", b"a.jpg\nb\xff.jpg\n", 2, "0xff"),
        ("l.tsv", "url\tcaption\na.jpg\tx\n".encode("utf-16"), 1, "UTF-16"),
        ("l.tsv", "url\tcaption\na.jpg\tx\n".encode("utf-16-le"), 1, "UTF-16"),
        ("l.jsonl", b'{"uri": "a.jpg"}\n\n{"uri": "b\0.jpg"}\n', 3, "bytes of zero"),
        ("l.txt", b"a.jpg\nb.jpg\0\n", 2, "bytes of zero"),
        ("l.txt", b"a.jpg\rb.jpg\rc.jpg", 1, "carriage return"),
        ("l.csv", b"url,caption\ra.jpg,x\r", 1, "carriage return"),
        ("l.jsonl", b'{"uri": "a.jpg", "uri": "b.jpg"}\n', 1, "twice"),
        ("l.jsonl", b'{"uri": "a.jpg"}\n{"uri": 7}\n', 2, "no text"),
        ("l.jsonl", b'{"uri": "a.jpg"}\n{"uri": {"path": "b.jpg"}}\n', 2, "no text"),
        ("l.jsonl", rb'{"uri": "a.jpg", "text": "\ud83d"}', 1, "surrogate"),
        ("l.jsonl", b'{"uri": "a.jpg"} {"uri": "b.jpg"}\n', 1, "JSON"),
        ("l.jsonl", b'{"uri": "a.jpg", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 1, "JSON"),
    ],
)
def test_bytes_that_are_no_text_for_sure(name: str, data: bytes, line: int, what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{name}, line {line}[,:] ") as caught:
        listed(tmp_path, name, data)
    assert what in str(caught.value)


def test_surrogate_pairs_and_separators_of_unicode(tmp_path: Path) -> None:
    """What breaks lines for Unicode does not end a row."""
    [file] = listed(tmp_path, "l.jsonl", r'{"uri": "a.jpg", "text": "\ud83d\ude00"}')
    assert captions([file]) == ["\U0001f600"]
    strange = "a\x0bb\x0cc\x85d\u2028e"
    assert captions(listed(tmp_path, "l.tsv", f"url\tcaption\na.jpg\t{strange}\n")) == [strange]
    assert captions(listed(tmp_path, "l.csv", f"url,caption\na.jpg,{strange}\n")) == [strange]
    assert captions(listed(tmp_path, "m.jsonl", '{"uri": "a.jpg", "text": "x\u2028y"}\n')) == ["x\u2028y"]
