"""Images of a stranger: bombs, formats that start programs, annotations that multiply."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from hostile import bounded, picture, refused
from nnscan.annotations import _frame, decode_image, fill_boxes
from nnscan.errors import DataError


def png(width: int, height: int) -> bytes:
    """Return a PNG file of zeros without making the image."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(height)) + packer.flush()
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.filterwarnings("error")
def test_an_image_beyond_pillow_s_limit_is_refused_not_warned_of():
    """Pillow itself opens images up to twice its limit: half a gigabyte from 300 kilobytes."""
    content = png(10_000, 9_000)
    assert len(content) < 300_000
    sentence = refused(lambda: decode_image("bomb.png", content), DataError, megabytes=100)
    assert "bomb.png is no image or damaged (Image size (90000000 pixels) exceeds limit" in sentence


@pytest.mark.parametrize("form", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_usual_formats_are_read(form):
    assert decode_image("image", picture(form=form)).size == (8, 8)


@pytest.mark.parametrize("name", ["x.eps", "x.png"])
def test_no_program_is_started_for_an_image(tmp_path, monkeypatch, name):
    """Pillow's reader of EPS starts Ghostscript, whatever the file is called."""
    trap = tmp_path / "executed"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {trap}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert "is no image or damaged" in refused(lambda: decode_image(name, postscript), DataError)
    assert not trap.exists()
    with pytest.raises(OSError, match=r"."):  # the trap would have worked
        Image.open(io.BytesIO(postscript)).load()
    assert trap.exists()


def test_a_hundred_thousand_boxes_take_no_more_room_than_one():
    corners = np.tile([0.0, 0.0, 30.0, 20.0], (100_000, 1)) + np.linspace(0, 5, 100_000)[:, None]
    with bounded(100):
        inside = fill_boxes(corners, (500, 500), (500, 500))
    assert inside.sum() == inside[:25, :35].sum() > 700


@pytest.mark.parametrize("shape", [(7, 9), (20, 31), (3, 2)])
def test_boxes_are_filled_as_the_definition_says(shape):
    generator = np.random.default_rng(1)
    corners = generator.uniform(-5, 40, (6, 4)).round(1)
    corners[:, 2:] += corners[:, :2].clip(0)
    x, y = ((np.arange(size) + 0.5) * side / size for size, side in zip(shape[::-1], (31, 20), strict=True))
    inside = [[any(x0 <= a < x1 and y0 <= b < y1 for x0, y0, x1, y1 in corners) for a in x] for b in y]
    assert fill_boxes(corners, (20, 31), shape).tolist() == inside


def test_a_million_specks_take_no_more_room_than_the_image():
    values = np.zeros((2000, 2000), np.uint8)
    values[::2, ::2] = 1
    values[490:810, 490:910] = 0
    values[500:800, 500:900] = 1
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")

    class Store:
        def where(self, path):
            return path

    with bounded(300):
        samples = list(_frame(Store(), "image", "labels", content.getvalue(), ["void", "car"], ["car"]))
    assert [sample.crop for sample in samples] == [(460, 410, 940, 890)]
