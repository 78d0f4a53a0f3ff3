"""Files of texts, examples and pairs that a user brings: whatever is in them, an error names file, line and way out."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from bench.files import rows
from bench.files.digests import file_sha256
from bench.fit_data.jsonl import ExamplesFile, PairsFile, TextsFile
from methods.errors import SetupError

GOOD = b'{"text": "a"}\n'


@pytest.fixture
def brought(tmp_path):
    """Write bytes into a file of texts; gives what is asked of it."""

    def write(content: bytes) -> TextsFile:
        (tmp_path / "x.jsonl").write_bytes(content)
        return TextsFile(path=str(tmp_path / "x.jsonl"))

    return write


def refused(data: TextsFile) -> str:
    """The message, which is the same whatever is asked of the file."""
    told = set()
    for ask in (data.check, data.identity, data.size, lambda: data.load(None)):
        with pytest.raises(SetupError) as caught:
            ask()
        told.add(str(caught.value))
    (message,) = told
    assert message.startswith(data.path) and len(message.splitlines()) == 1 and message.isprintable()
    return message


SOUND = {
    "a byte order mark at the beginning": (b"\xef\xbb\xbf" + GOOD, ["a"]),
    "of Windows": (b'{"text": "a"}\r\n\r\n{"text": "b"}\r\n', ["a", "b"]),
    "of an old Mac": (b'{"text": "a"}\r{"text": "b"}\r', ["a", "b"]),
    "other line ends in a text": ('{"text": "a\u2028b\u0085c\\r\\nd"}\n'.encode(), ["a\u2028b\x85c\r\nd"]),
    "without a last line end": (GOOD + b'{"text": "b"}', ["a", "b"]),
    "blank lines": (b"\n \t\n" + GOOD + b"\x0c\n", ["a"]),
    "both halves of a pair": (b'{"text": "\\ud83d\\ude00"}\n', ["\U0001f600"]),
    "what JSON escapes": (b'{"text": "a\\u0000\\t\\u0041"}\n', ["a\0\tA"]),
    "more than is read": (b'{"text": "a", "n": [1e999, -3, {"text": "b"}]}\n', ["a"]),
    "a large number": (b'{"text": "a", "n": ' + b"1" * 4000 + b"}\n", ["a"]),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_file_is_read_and_named_by_its_bytes(brought, name):
    content, texts = SOUND[name]
    data = brought(content)
    assert data.load(None)[0] == texts
    assert data.identity() == {"name": "texts", "sha256": file_sha256(Path(data.path))}


BROKEN = {
    b"\xef\xbb\xbf" + GOOD: "not JSON, at column 1: a byte order mark inside the file",
    b'{"text": "\xe9"}': "no UTF-8 (0xe9 at byte 11 of the line); save the file in UTF-8",
    '{"text": "é'.encode()[:-1]: "no UTF-8 (0xc3 at byte 11",
    '{"text": "é'.encode() + b'\xed\xa0\x80"}': "no UTF-8 (0xed at byte 13",
    b'{"text": "a\0"}': "a NUL byte at byte 12 of the line: the file is in UTF-16, or no text at all",
    b'{"text": "a\x07"}': "not JSON, at column 12: a control character, 0x07, which a text in JSON holds as \\u0007",
    b'{"text": "a\tb"}': "not JSON, at column 12: a control character, 0x09, which a text in JSON holds as \\t",
    b'\x1b{"text": "a"}': "not JSON, at column 1: a control character, 0x1b",
    b'{"text": "a\\ud800"}': '\\ud800 in "text", its character 2, is half of a surrogate pair',
    b'{"text": "\\uDE00\\ud83d"}': '\\ude00 in "text", its character 1',
    b'{"text": "a", "\\ud800": 1}': '\\ud800 in "\\ud800", its character 1',
    b'{"text": "a", "n": [0, {"m": ["b\\udfff"]}]}': '\\udfff in "n.m", its character 2',
    b'{"text": "a", "n": {"\\udfff": 1}}': '\\udfff in "n.\\udfff", its character 1',
    b'{"text": "a", "text": "b"}': 'the key "text" occurs 2 times in one object; keep one of them',
    b'{"text": "a", "n": [{"m": 1, "m": 1}]}': 'the key "m" occurs 2 times',
    b'{"text": "a", "n": NaN}': "NaN is not a number that JSON has; write null",
    b'{"text": "a", "n": [-Infinity]}': "-Infinity is not a number",
    b'{"text": ' + b"1" * 5000 + b"}": "a number of 5000 digits, which is too long to read; write it as a string",
    b"1" * 5000: "a number of 5000 digits",
    b'{"text": "a", "n": ' + b"[" * 100_000: "brackets are nested too deeply",
    b'{"n":' * 100_000: "brackets are nested",
    b'{"text": "a"': "not JSON, at column 13: Expecting ',' delimiter",
    b'{"text": "\\alpha"}': "not JSON, at column 11: Invalid \\escape",
    b'{"text": "a"} {"text": "b"}': "not JSON, at column 15: Extra data",
    b'[{"text": "a"}]': "a JSON list, no object",
}


@pytest.mark.parametrize("line", BROKEN, ids=lambda line: repr(line[:30]))
def test_a_line_that_cannot_be_read_is_named(brought, line):
    message = refused(brought(GOOD + b"\r\n" + line + b"\n" + GOOD))
    assert f"x.jsonl, line 3: {BROKEN[line]}" in message
    assert message.endswith('; each line has to be {"text": "..."}')


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_another_encoding_is_told(brought, encoding):
    message = refused(brought('{"text": "a"}\n'.encode(encoding)))
    assert "line 1: " in message and "UTF-16" in message and "save it in UTF-8" in message


def test_of_the_other_kinds_too(tmp_path):
    for kind in (ExamplesFile, PairsFile):
        row = {key: f" {key}" for key in kind.keys}
        path = tmp_path / f"{kind.name}.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode())
        assert [list(column) for column in kind(path=str(path)).load(None)[0]] == [[text] for text in row.values()]
        path.write_text(json.dumps(row | {kind.keys[1]: "\udc80"}))
        assert f'line 1: \\udc80 in "{kind.keys[1]}"' in refused(kind(path=str(path)))


def test_a_line_may_have_so_many_bytes(brought, monkeypatch):
    monkeypatch.setattr(rows, "LONGEST", 40)
    for letter, count in (("a", 28), ("é", 14)):
        longest = f'{{"text": "{letter * count}"}}'
        for end in ("", "\n", "\r\n", f"\n{longest}\n"):
            assert brought((longest + end).encode()).load(None)[0][0] == letter * count
            told = refused(brought(GOOD + f'{{"text": "{letter * count}b"}}{end}'.encode()))
            assert "line 2: it has 41 bytes, at most 40 are read; write one text in each line" in told
    assert "it has 1,012 bytes" in refused(brought(b'{"text": "' + b"a" * 1000 + b'"}\n' + GOOD))


def test_a_line_without_end_is_not_taken_into_memory(brought):
    data = brought(b"")
    with Path(data.path).open("r+b") as file:
        file.truncate(40_000_000)  # on most file systems no bytes are written
    tracemalloc.start()
    with pytest.raises(SetupError, match="line 1: it has 40,000,000 bytes, at most 10,000,000 are read"):
        data.check()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 35_000_000


# -- what is no file ---------------------------------------------------------------------------------------------------


def test_what_is_no_file_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(GOOD)
    for path, message in {
        "": "this is a folder",
        ".": "this is a folder",
        "pipe": "this can be read only once, as a pipe",
        "none": f"No such file or directory (from {tmp_path})",
        "~/none": f"(from {tmp_path}, and ~ is not expanded here)",
        "file/none": "Not a directory",
        "x" * 300: "File name too long",
    }.items():
        told = refused(TextsFile(path=path))
        assert (
            told.startswith(f"{path}: {message}; give a readable JSONL file in UTF-8")
            or message in told
            and "~" in path
        )
        assert told.endswith('each line has to be {"text": "..."}')
    with pytest.raises(SetupError, match="null byte; give a readable JSONL file"):
        TextsFile(path="a\0b").check()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_file_that_cannot_be_opened_or_read_to_its_end(brought, monkeypatch, error):
    data = brought(GOOD)

    def broken(*arguments, **settings):
        raise error

    monkeypatch.setattr(Path, "open", broken)
    assert f": {error.strerror}; give a readable JSONL file in UTF-8" in refused(data)


def test_a_file_without_permission(brought):
    data = brought(GOOD)
    Path(data.path).chmod(0)
    if os.access(data.path, os.R_OK):
        pytest.skip("this user may read any file")
    assert "Permission denied; give" in refused(data)
