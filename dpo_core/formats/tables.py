"""Records out of files as people have them, told apart by what is in them and not by their names.

JSONL, JSON, CSV and TSV, packed or not, are read here; Parquet, Arrow, zst and data sets of the Hugging Face Hub
through ``pyarrow`` and ``datasets``, which the extra ``data`` installs. Nothing is fetched unless a source begins with
``hub:``.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

from dpo_core.errors import InputError, printable, shown
from dpo_core.formats.fields import COLUMNS, NAMES
from dpo_core.formats.files import reason

__all__ = ["BOMB", "HUB", "LONGEST", "Row", "rows"]

LONGEST = 16 * 2**20  # bytes in a line; the longest answers that can be trained on have some thousand
WHOLE = 2**30  # bytes of a file that has to be read at once
BOMB = 200  # a packed file that unpacks to so many times its size, and to more than 20 MB, is no text
BOM = b"\xef\xbb\xbf"
HUB = "hub:"  # begins the name of a data set of the Hub
HEAD = 2**16  # bytes by which a file is told
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)  # what a damaged file raises
UNPACKERS: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
ZSTD = b"\x28\xb5\x2f\xfd"
ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Row:
    """A record with its place, or what is wrong there; with ``ends``, nothing behind it could be read."""

    place: str
    record: dict[str, Any]
    fault: str = ""
    ends: bool = False


def rows(source: str | Path) -> Iterator[Row]:
    """Read the records of a file, of a folder that ``datasets`` saved, or of a data set of the Hub.

    Args:
        source: a path, or ``hub:NAME``, ``hub:NAME:SPLIT`` or ``hub:NAME:SPLIT:CONFIG``; the split is else ``train``.
    Raises:
        InputError: nothing of it can be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "a.csv").write_text("prompt,chosen,rejected\\nWhy?,Because.,No.\\n")
    ...     [row.record for row in rows(Path(folder) / "a.csv")]
    [{'prompt': 'Why?', 'chosen': 'Because.', 'rejected': 'No.'}]
    """
    if str(source).startswith(HUB):
        yield from _hub(str(source))
        return
    path = Path(source)
    if any(os.path.isfile(path / name) for name in ("dataset_info.json", "dataset_dict.json")):
        yield from _saved(path)
        return
    number = [0]  # of the last line or record, for what goes wrong behind it
    try:
        with path.open("rb") as raw:
            yield from _of_file(path, raw, number)
    except InputError:
        raise
    except BROKEN as error:
        if number[0]:
            why = f"cannot be read from here on ({reason(error)}); copy or pack the file again"
            yield Row(f"{path}:{number[0] + 1}", {}, why, ends=True)
            return
        named = re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and isinstance(error, FileNotFoundError)
        hub = f", or name a data set of the Hugging Face Hub: {HUB}{source}" if named else ""
        raise InputError(f"{path}: cannot be read ({reason(error)}); check the path{hub}") from error


def _of_file(path: Path, raw: io.BufferedReader, number: list[int]) -> Iterator[Row]:
    head = raw.peek(8)
    if head.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
        yield from _arrow(path, head)
        return
    if head.startswith(ZIP):
        raise InputError(f"{path}: is a zip archive or a spreadsheet; unpack it, or save it as CSV or JSONL")
    unpack = next((unpack for magic, unpack in UNPACKERS.items() if head.startswith(magic)), None)
    if head.startswith(ZSTD):
        unpack = _zstd(path)
    file = raw
    if unpack:
        file = io.BufferedReader(_Unpacked(path, unpack(raw)))
    yield from _text(path, file, number)


class _Unpacked(io.RawIOBase):
    """What a packed file holds, up to as much as text can be packed."""

    def __init__(self, path: Path, inner: Any) -> None:
        self.inner, self.path = inner, path
        self.left = max(20 * 2**20, BOMB * os.stat(path).st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.inner.read1(len(buffer))  # what is there, so that damage behind it does not take it along
        self.left -= len(data)
        if self.left < 0:
            raise InputError(f"{self.path}: unpacks to more than {BOMB} times the file's size; give the text unpacked")
        buffer[: len(data)] = data
        return len(data)


# Text


def _text(path: Path, file: io.BufferedReader, number: list[int]) -> Iterator[Row]:
    head = file.peek(HEAD)[:HEAD].removeprefix(BOM)
    first = head.lstrip().split(b"\n", 1)[0].strip()
    if delimiter := _delimiter(path, first):
        yield from _table(path, file, delimiter, number)
    elif first.startswith(b"["):
        yield from _items(path, _whole(path, file))
    elif first.startswith(b"{") and not first.endswith(b"}") and b"\n" in head.lstrip():  # over several lines, or cut
        whole = _whole(path, file)
        try:
            yield from _objects(path, whole.decode("utf-8"))
        except (ValueError, RecursionError):
            yield from _lines(path, io.BytesIO(whole), number)
    else:
        yield from _lines(path, file, number)


def _whole(path: Path, file: BinaryIO) -> bytes:
    whole = file.read(WHOLE + 1)
    if len(whole) > WHOLE:
        raise InputError(f"{path}: has more than {WHOLE:,} bytes in one list; write one object a line, as JSONL")
    return whole.removeprefix(BOM)


def _lines(path: Path, file: BinaryIO, number: list[int]) -> Iterator[Row]:
    """Read JSONL."""
    while line := file.readline(LONGEST + 1):
        number[0] += 1
        place = f"{path}:{number[0]}"
        line = line.removeprefix(BOM)  # of any line, as files may have been put one behind the other
        if number[0] == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
            yield Row(place, {}, "not UTF-8 but UTF-16; save the file as UTF-8", ends=True)
            return
        if len(line) > LONGEST:
            fault = f"has more than {LONGEST:,} bytes; write one object a line, and shorten long texts"
            yield Row(place, {}, fault, ends=True)
            return
        if line.strip():
            yield _line(place, line)


def _line(place: str, line: bytes) -> Row:
    try:
        return _record(place, _parsed(line))
    except InputError as error:
        return Row(place, {}, str(error))
    except RecursionError:
        return Row(place, {}, "brackets nested too deeply; write text, or a list of messages")


def _record(place: str, value: object) -> Row:
    if isinstance(value, dict):
        return Row(place, value)
    return Row(place, {}, f"not an object but {shown(value)}; write {{...}} with {', '.join(COLUMNS)}")


def _parsed(line: bytes) -> Any:
    try:
        return DECODER.decode(re.sub(r"\}\s*,\s*\Z", "}", line.decode("utf-8")).strip("\r\n\t "))
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 ({error.reason} at byte {error.start + 1}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        raise InputError(f"not JSON ({what} at column {error.colno}); write one object a line") from error
    except InputError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"not JSON that can be read ({error}); shorten the number") from error


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(items)
    if len(record) < len(items):
        twice = next(name for name, count in Counter(name for name, _ in items).items() if count > 1)
        raise InputError(f"{shown(twice)} is there twice, and only one can count; leave the other out")
    return record


# NaN is what pandas writes for a missing value, as null is elsewhere.
DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=lambda name: None)
SPACE = re.compile(r"[ \t\r\n]*")


def _items(path: Path, whole: bytes) -> Iterator[Row]:
    """Read a JSON list of objects, one after the other, so that a bad one leaves those before it."""
    count = 0
    try:
        text = whole.decode("utf-8")
        at = cast(re.Match[str], SPACE.match(text)).end() + 1
        while not text.startswith("]", at := _skip(text, at)):
            count += 1
            place = f"{path}: item {count}"
            try:
                value, at = DECODER.raw_decode(text, at)
                yield _record(place, value)
            except InputError as error:  # a field twice: the object has an end all the same
                at = json.JSONDecoder().raw_decode(text, at)[1]
                yield Row(place, {}, str(error))
            at = _skip(text, at)
            if not text.startswith((",", "]"), at):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at += text.startswith(",", at)
        if at := _skip(text, at + 1) - len(text):
            raise json.JSONDecodeError("Extra data", text, len(text) + at)
    except UnicodeDecodeError as error:
        line = whole.count(b"\n", 0, error.start) + 1
        yield Row(f"{path}:{line}", {}, f"not UTF-8 ({error.reason}); save the file as UTF-8", ends=True)
    except RecursionError:
        fault = "brackets nested too deeply; write text, or a list of messages"
        yield Row(f"{path}:1", {}, fault, ends=True)
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        fault = f"not JSON ({what} at column {error.colno}); write a list of objects, or one object a line"
        yield Row(f"{path}:{error.lineno}", {}, fault, ends=True)
    except ValueError as error:  # a number of thousands of digits
        yield Row(f"{path}:1", {}, f"not JSON that can be read ({error}); shorten the number", ends=True)


def _skip(text: str, at: int) -> int:
    return cast(re.Match[str], SPACE.match(text, at)).end()


def _objects(path: Path, text: str) -> list[Row]:
    """Read objects that go over several lines, or one around a list of them."""
    values, at = [], _skip(text, 0)
    while at < len(text):
        value, end = DECODER.raw_decode(text, at)
        values.append((f"{path}:{text.count(chr(10), 0, at) + 1}", value))
        at = _skip(text, end)
    if len(values) == 1 and isinstance(values[0][1], dict):
        lists = {name: value for name, value in values[0][1].items() if _list_of_objects(value)}
        if len(lists) == 1 and not NAMES & values[0][1].keys():
            ((name, found),) = lists.items()
            return [_record(f"{path}: {printable(name)} {n}", record) for n, record in enumerate(found, start=1)]
    return [_record(place, value) for place, value in values]


def _list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _delimiter(path: Path, header: bytes) -> str:
    """Find what stands between the fields of a table; nothing if it is none."""
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if header.startswith((b"{", b"[")) or not header:
        return ""
    line = header.decode("utf-8", "replace")
    delimiter = max("\t,;", key=line.count)
    names = {name.strip(' "') for name in line.split(delimiter)}
    known = len(names) > 1 and names & NAMES
    return delimiter if known or (suffixes & {".csv", ".tsv"} and len(names) > 1) else ""


def _table(path: Path, file: io.BufferedReader, delimiter: str, number: list[int]) -> Iterator[Row]:
    """Read CSV and TSV."""
    csv.field_size_limit(LONGEST)  # the usual 128 KB are too little for dialogues
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        while True:
            place = f"{path}:{reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield Row(place, {}, f"not a line of a table ({error}); put texts with quotes in them in quotes")
                continue
            number[0] = reader.line_num
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if twice := [name for name, count in Counter(header).items() if count > 1]:
                    raise InputError(f"{place}: the header has {shown(twice[0])} twice; leave one out")
            elif len(cells) != len(header):
                fault = f"has {len(cells)} fields where the header has {len(header)}; put texts in quotes"
                yield Row(place, {}, fault)
            else:
                yield Row(place, {name: _cell(name, cell) for name, cell in zip(header, cells)})
    except UnicodeDecodeError as error:
        yield Row(place, {}, f"not UTF-8 ({error.reason}); save the file as UTF-8", ends=True)
    finally:
        text.detach()


def _cell(name: str, cell: str) -> Any:
    """Read a field of a table, in which a label can only be text."""
    return {"true": True, "false": False}.get(cell.strip().lower(), cell) if name == "label" else cell


# What libraries read


def _library(name: str, what: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        remedy = f"pip install {package}"
        raise InputError(f"{what} is read by the library {package}, which is not installed; {remedy}") from error


def _zstd(path: Path) -> Callable[[Any], Any]:
    """Unpack zst, through pyarrow."""
    arrow = _library("pyarrow", f"{path}: zst")
    return lambda raw: arrow.CompressedInputStream(arrow.PythonFile(raw, "r"), "zstd")


def _arrow(path: Path, head: bytes) -> Iterator[Row]:
    """Read Parquet, and Arrow as a file or a stream."""
    if head.startswith(b"PAR1"):
        batches = _library("pyarrow.parquet", f"{path}: Parquet").ParquetFile(path).iter_batches()
    else:
        arrow = _library("pyarrow", f"{path}: Arrow")
        if head.startswith(b"ARROW1"):
            opened = arrow.ipc.open_file(arrow.memory_map(str(path)))
            batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
        else:
            batches = iter(arrow.ipc.open_stream(arrow.memory_map(str(path))))
    yield from _numbered(f"{path}:", (record for batch in batches for record in _checked(batch)))


def _checked(batch: Any) -> list[dict[str, Any]]:
    """Take the records out of a batch, in which lengths may be wrong if the file is damaged."""
    batch.validate(full=True)
    records: list[dict[str, Any]] = batch.to_pylist()
    return records


def _numbered(name: str, records: Iterable[dict[str, Any]]) -> Iterator[Row]:
    for count, record in enumerate(records, start=1):
        yield Row(f"{name} row {count}", record)


def _saved(path: Path) -> Iterator[Row]:
    """Read a folder that the library datasets wrote."""
    datasets = _library("datasets", f"{path}: a saved data set")
    data = datasets.load_from_disk(str(path))
    if isinstance(data, dict):  # several splits
        if "train" not in data:
            raise InputError(f"{path}: holds the splits {', '.join(data)}; name the folder of one")
        data = data["train"]
    yield from _numbered(f"{path}:", data)


def _hub(source: str) -> Iterator[Row]:
    name, split, config = [*source.removeprefix(HUB).split(":"), "", ""][:3]
    datasets = _library("datasets", f"{source}: a data set of the Hugging Face Hub")
    try:
        data = datasets.load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # the client raises a dozen kinds; each means that the data set is not to be had
        raise InputError(
            f"{source}: could not be fetched from the Hugging Face Hub ({type(error).__name__}:"
            f" {shown(str(error), 300)}); check name and network; split and configuration go behind the name,"
            f" {HUB}NAME:SPLIT:CONFIG"
        ) from error
    yield from _numbered(f"{source}", data)
