"""The comment line of extended XYZ: `key=value` pairs, one grammar (https://github.com/libAtoms/extxyz), nothing guessed.

A value is a bare word, or stands in "..." or '...' (backslash escapes), {...} or [...]. A quotation mark or bracket opens a
value only where a value begins, so an apostrophe inside a word is a letter. A key without a value is True.
"""

from __future__ import annotations

import json
import math
import re

import numpy as np

from mlff.basics.errors import DataError

_CLOSING = {'"': '"', "'": "'", "{": "}", "[": "]"}
_BOOLEANS = {"T": True, "true": True, "True": True, "TRUE": True, "F": False, "false": False, "False": False, "FALSE": False}
_QUOTES = "\"'"
_SPACE = " \t\r\n\x0b\x0c"  #: a space that does not break a line is a letter
_KEY = re.compile(r'"((?:\\.|[^"\\])+)"|([^\s="]+)', re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eEdD][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_ESCAPES = {"n": "\n", "t": "\t"}


def parse(line: str) -> dict[str, object]:
    """Keys to numbers, booleans, arrays of them (1-D, or n-D in nested brackets) or text.

    Raises DataError: a quotation mark or bracket that is not closed, a key that stands twice, a value without a key.
    """
    found: dict[str, object] = {}
    place = _skip(line, 0)
    while place < len(line):
        match = _KEY.match(line, place)
        if match is None:
            what = (
                "a quotation mark is not closed"
                if line[place] == '"'
                else f"a key is expected before {line[place : place + 20]!r}"
            )
            raise DataError(what)
        key = _unescaped(match[1]) if match[1] is not None else match[2]
        place, value = match.end(), True
        equals = _skip(line, place)
        if line[equals : equals + 1] == "=":
            text, delimiter, place = _value(line, _skip(line, equals + 1), key)
            value = _typed(text, delimiter)
        elif match[1] is None and key[0] in "{[]}":
            raise DataError("a bracket is not opened or not closed")
        if key in found:
            raise DataError(f"the key {key[:40]!r} stands there twice; remove one")
        found[key] = value
        place = _skip(line, place)
    return found


def _skip(line: str, place: int) -> int:
    while place < len(line) and line[place] in _SPACE:
        place += 1
    return place


def _value(line: str, start: int, key: str) -> tuple[str, str, int]:
    """The text of a value, the mark that opened it ("" for a bare word), and the place after it."""
    opening = line[start : start + 1]
    if opening not in _CLOSING or not opening:
        end = start
        while end < len(line) and line[end] not in _SPACE:
            end += 1
        return line[start:end], "", end
    closing, depth, place = _CLOSING[opening], 1, start + 1
    while place < len(line):
        letter = line[place]
        if letter == "\\" and opening in _QUOTES:
            place += 1
        elif letter == closing:
            depth -= 1
        elif letter == opening:
            depth += 1
        if depth == 0:
            text = line[start + 1 : place]
            return (_unescaped(text) if opening in _QUOTES else text), opening, place + 1
        place += 1
    raise DataError(f"the value of {key[:40]!r}: a {'quotation mark' if opening in _QUOTES else 'bracket'} is not closed")


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), text)


def _typed(text: str, delimiter: str) -> object:
    if text.startswith("_JSON "):  # what ASE writes of nested values
        try:
            value = json.loads(text.removeprefix("_JSON "))
        except ValueError:
            raise DataError(f"a value is not valid JSON: {text[:40]!r}") from None
        return _array(value)
    if delimiter == "[" and "[" in text:
        quoted = re.sub(
            r"(?<![\w.+-])(T|F|true|false|True|False|TRUE|FALSE)(?![\w.])", lambda m: str(_BOOLEANS[m[1]]).lower(), text
        )
        try:
            return _array(json.loads(f"[{quoted}]"))
        except ValueError:
            return text
    words = [word for word in re.split(r"[\s,]+", text, flags=re.ASCII) if word]
    if not words:
        return text
    if all(word in _BOOLEANS for word in words):
        values = [_BOOLEANS[word] for word in words]
    elif all(map(_NUMBER.fullmatch, words)):
        whole = all(map(_INTEGER.fullmatch, words))
        values = [int(word) if whole else float(re.sub("[dD]", "e", word)) for word in words]
        if any(math.isinf(value) and "inf" not in word.lower() for value, word in zip(values, words, strict=True)):
            return text  # digits with an e among them, a name
    else:
        return text
    return values[0] if len(values) == 1 and delimiter not in ("{", "[") else np.array(values)


def _array(value: object) -> object:
    """A list of numbers or booleans, nested or not, as an array; anything else as it is."""
    if not isinstance(value, list):
        return value
    try:
        array = np.array(value)
    except ValueError:  # lists of different lengths
        return value
    return array if array.dtype.kind in "ifb" else value
