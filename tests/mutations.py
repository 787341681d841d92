"""Bytes of an honest file with some of them changed."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

INTERESTING = [
    b"", b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f",
    struct.pack("<Q", 2**63), struct.pack("<Q", 2**40), struct.pack(">I", 2**31), b"\0" * 64, b"-1", b"1e999", b"nan",
    b"\xef\xbb\xbf", b"\n", b"\r\n", b",", b'"', b"<", b"%s", b"../", b"\x1b[2J", b"9" * 400, b"\xed\xa0\x80", b"'",
]  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, *honest: bytes, words: bytes = b"") -> bytes:
    """Return one of the honest contents with up to eight changes; each place is as likely as another.

    Args:
        draw: Hypothesis's.
        honest: What to change.
        words: Further bytes that are put in.
    """
    content = bytearray(draw(st.sampled_from(honest)))
    for _ in range(draw(st.integers(1, 8))):
        # half of the changes near the beginning, where headers are
        reach = len(content) if draw(st.booleans()) else min(len(content), 64)
        place = draw(st.integers(0, max(reach - 1, 0)))
        length = draw(st.integers(1, 16))
        kind = draw(st.sampled_from(["flip", "flip", "set", "put", "put", "cut", "drop", "copy"]))
        if kind == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            content[place : place + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "put":
            piece = draw(st.sampled_from([*INTERESTING, *(bytes([word]) for word in words)]))
            over = len(piece) if draw(st.booleans()) else 0
            content[place : place + over] = piece
        elif kind == "cut":
            del content[place:]
        elif kind == "drop":
            del content[place : place + length]
        elif kind == "copy":
            content[place:place] = content[: draw(st.integers(0, 200))]
    return bytes(content)
