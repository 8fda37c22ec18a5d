"""Mutations of bytes, of text and of trees of plain values: functions of a `random.Random`, so inputs can be made again."""

from __future__ import annotations

import json
import random
import re
import struct
from typing import Any

#: What stands in place of a number in text.
NUMBERS = [
    *(b"1000000000", b"-1", b"0", b"nan", b"inf", b"-inf", b"1e400", b"-1e308", b"1e-320", b"1e9", b"0.001", b"1_000"),
    *(b"2147483648", b"9223372036854775808", b"-9223372036854775809", b"0x7fffffff", b"True", b"None", b"1.", b".5", b"+-1"),
    *("٣".encode(), "１２".encode(), "²".encode(), b"1" * 40, b"9" * 5000, b"1+2j", b"1,5", b"00012", b""),
]
#: What is put anywhere into text.
TOKENS = [
    *(
        b"\x00",
        b"\x1b[31m",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\x0b\x0c",
        "\u2028\x85".encode(),
        b"\xed\xa0\x80",
        b"\n\n",
        b"\t",
    ),
    *(
        b'"',
        b"'",
        b"{",
        b"}",
        b"[",
        b"]",
        b"(",
        b")",
        b"=",
        b":",
        b",",
        b"#",
        b"\\",
        b"../../../../etc/passwd",
        b"/etc/passwd",
    ),
    *(
        b"[/x]",
        b"[link=file:///etc/passwd]",
        b"%s%n",
        b"$(touch executed)",
        b"__import__('os').system('touch executed')",
        b"~nobody",
    ),
]
_NUMBER = re.compile(rb"[-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?")
_WORD = re.compile(rb"[A-Za-z_]{2,}")
_PLACES = [
    0,
    1,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    10**9,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
]


def some(rng: random.Random, most: int = 4) -> int:
    """How many mutations: often one, seldom `most`."""
    return min(1 + int(rng.expovariate(1.0)), most)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flipped bits and bytes, blocks cut, inserted, doubled and swapped, integers overwritten."""
    data = bytearray(data)
    for _ in range(some(rng)):
        if not data:
            return bytes(rng.randbytes(rng.randrange(20)))
        kind, at = rng.randrange(10), rng.randrange(len(data))
        length = min(rng.choice((1, 2, 4, 8, 16, 64, 512)), len(data) - at)
        if kind <= 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at] = rng.randrange(256)
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            data[at:at] = rng.randbytes(length)
        elif kind == 6:
            data[at:at] = data[at : at + length] * rng.choice((1, 1, 2, 50))
        elif kind == 7:
            other = rng.randrange(len(data) - length + 1)
            data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
        elif kind == 8:
            data[at : at + length] = bytes([rng.choice((0, 255))]) * length
        else:
            width, order = rng.choice("BHIQ"), rng.choice("<>")
            value = rng.choice(_PLACES) & (2 ** (8 * struct.calcsize(width)) - 1)
            packed = struct.pack(order + width, value)
            data[at : at + len(packed)] = packed
    return bytes(data)


def mutate_text(rng: random.Random, data: bytes, words: list[bytes] = ()) -> bytes:
    """Numbers and words replaced, lines doubled, lost, swapped, tokens and deep nesting put in; `words`: the format's."""
    for _ in range(some(rng)):
        kind = rng.randrange(12)
        if kind <= 3 and (found := list(_NUMBER.finditer(data))):
            match = rng.choice(found)
            data = data[: match.start()] + rng.choice(NUMBERS) + data[match.end() :]
        elif kind <= 5 and (found := list(_WORD.finditer(data))):
            match, other = rng.choice(found), rng.choice(found)
            word = rng.choice(words) if words and rng.random() < 0.7 else other.group()
            data = data[: match.start()] + word + data[match.end() :]
        elif kind <= 8:
            lines = data.split(b"\n")
            at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
            if kind == 6:
                lines[at:at] = [lines[other]] * rng.choice((1, 1, 2, 30))
            elif kind == 7:
                del lines[at]
            else:
                lines[at], lines[other] = lines[other], lines[at]
            data = b"\n".join(lines)
        elif kind <= 10:
            at = rng.randrange(len(data) + 1)
            token = rng.choice(words) if words and rng.random() < 0.4 else rng.choice(TOKENS)
            data = data[:at] + token + data[at:]
        else:
            at, count = rng.randrange(len(data) + 1), rng.choice((30, 300, 3000))
            left, right = rng.choice(
                ((b"[", b"]"), (b'{"a":', b"}"), (b"(", b")"), (b"- ", b""), (b"{a: ", b"}"), (b"\n ", b""))
            )
            data = data[:at] + left * count + rng.choice((b"1", b"")) + right * rng.choice((count, 0)) + data[at:]
    return data


# --- trees ------------------------------------------------------------------------------------------------------------

_DEEP = "@deep@"  # becomes deep nesting in the text
VALUES = [
    *(
        10**9,
        -1,
        0,
        1,
        2,
        119,
        2**63,
        -(2**63) - 1,
        10**30,
        10**400,
        0.5,
        -0.5,
        1e308,
        1e-320,
        1e10,
        float("nan"),
        float("inf"),
        -0.0,
    ),
    *(
        None,
        True,
        False,
        "",
        " ",
        "x",
        "H",
        "1",
        "nan",
        "\x1b[31mred",
        "a\nb",
        "a\x00b",
        "\ud800",
        "٣",
        "../../etc/passwd",
        "/dev/zero",
    ),
    *(
        "[/x]",
        "[bold",
        "~nobody/x",
        "*" * 3000,
        [],
        {},
        [[]],
        [None],
        {"": {}},
        {"a": [1, {"b": None}]},
        [1, "x", None, [2]],
        _DEEP,
    ),
]


def nodes(tree: Any, most: int = 4000) -> list[tuple[Any, Any]]:
    """(container, key) of every value in a tree of dictionaries and lists."""
    found, stack = [], [tree]
    while stack and len(found) < most:
        node = stack.pop()
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            found.append((node, key))
            if isinstance(value, dict | list):
                stack.append(value)
    return found


def _copy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list) else tree


def mutate_tree(rng: random.Random, tree: Any, words: list[str] = ()) -> Any:
    """Values replaced, keys lost, renamed and added, items doubled, parts exchanged; the tree given stays as it is."""
    tree = _copy(tree)
    for _ in range(some(rng)):
        places = nodes(tree)
        if not places:
            return _copy(rng.choice(VALUES))
        node, key = rng.choice(places)
        if rng.random() < 0.5:  # as likely in the upper levels as in the many numbers at the bottom
            node, key = rng.choice(places[: 1 + len(places) // 10])
        other_node, other_key = rng.choice(places)
        kind = rng.randrange(10)
        if kind <= 3:
            node[key] = rng.choice(words) if words and rng.random() < 0.3 else _copy(rng.choice(VALUES))
        elif kind == 4:
            del node[key]
        elif kind == 5 and isinstance(node, dict):
            node[rng.choice([*words, "", "\x1b]0;x", "[/x]", str(key) + "x", "numbers", "positions"])] = node.pop(key)
        elif kind == 6:
            node[key] = _copy(other_node[other_key])
        elif kind == 7 and isinstance(node, list):
            node[key:key] = [_copy(node[key])] * rng.choice((1, 1, 5, 100))
        elif kind == 8:
            node[key] = [node[key]]
        else:
            value = node[key]
            if isinstance(value, int | float) and not isinstance(value, bool):
                node[key] = rng.choice((-value, value * 10**6, value + 1, str(value), [value], value * 10**300))
            else:
                node[key] = _copy(rng.choice(VALUES))
    return tree


def dump_json(rng: random.Random, tree: Any) -> bytes:
    """JSON, at times with a key twice or nested deeper than parsers like; NaN and Infinity as Python writes them."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return _deepen(rng, text, b'"' + _DEEP.encode() + b'"', b"[", b"]")


def _deepen(rng: random.Random, text: bytes, mark: bytes, left: bytes, right: bytes) -> bytes:
    if mark in text:
        count = rng.choice((30, 900, 3000, 100_000))
        text = text.replace(mark, left * count + right * count, 1)
    if rng.random() < 0.05 and (keys := re.findall(rb'"\w+": ', text)):
        key = rng.choice(keys)
        text = text.replace(key, key + b"1, " + key, 1)
    return text
