"""Archives of a stranger: names that lead out, links, devices, and sizes that are not true."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from hostile import image_folder, refused
from nnscan.configuration import DatasetConfig
from nnscan.data import load_dataset
from nnscan.errors import ConfigurationError, DataError
from nnscan.estimate import count_images


def header(name: str = "train/a/x.png", kind: bytes = tarfile.REGTYPE, size: int = 0, **rest: object) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    for key, value in rest.items():
        setattr(member, key, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def signed(block: bytearray) -> bytes:
    """Return a header with its checksum renewed."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def sized(size: int) -> bytes:
    """Return a member whose size is written as GNU tar writes very large and negative ones."""
    block = bytearray(header())
    block[124:136] = (b"\x80" if size >= 0 else b"\xff") + size.to_bytes(11, "big", signed=True)
    return signed(block)


def sparse() -> bytes:
    """Return a sparse member that claims 8 GiB and holds nothing."""
    block = bytearray(header(kind=tarfile.GNUTYPE_SPARSE))
    block[386:410] = b"%011o\0" % 0 * 2
    block[483:495] = b"%011o\0" % (8**11 - 1)
    return signed(block)


def load(path: Path) -> object:
    return load_dataset("image_folder", root=path, size=8)


ATTACKS = {
    "a negative size, at which tarfile goes back for ever": (sized(-1024) * 3, "a size that cannot be"),
    "a size beyond any memory": (sized(2**62), "is no complete .tar.gz archive"),
    "a sparse member": (sparse(), "a size that cannot be"),
    "five thousand long names inside each other": (header("@", b"L") * 5000, "maximum recursion depth"),
    "attributes of 4 GiB": (header(kind=tarfile.XHDTYPE, size=2**32 - 1), "a header claims 4294967"),
    "a symbolic link": (header(kind=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link or a device"),
    "a hard link": (header(kind=tarfile.LNKTYPE, linkname="/etc/passwd"), "is a link or a device"),
    "a device": (header(kind=tarfile.CHRTYPE, devmajor=1, devminor=5), "is a link or a device"),
    "a queue": (header(kind=tarfile.FIFOTYPE), "is a link or a device"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_members_that_cannot_be_are_refused(tmp_path, attack):
    blocks, message = ATTACKS[attack]
    path = tmp_path / "data.tar.gz"
    path.write_bytes(gzip.compress(blocks + bytes(1024)))
    assert message in refused(lambda: load(path), DataError)
    settings = DatasetConfig(name="d", source="image_folder", root=str(path), size=8)
    assert str(path) in refused(lambda: count_images(settings), ConfigurationError)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["../../escape.png", "/tmp/nnscan_escape.png", "train/a/../../../escape.png"])
def test_members_are_never_unpacked(tmp_path, name):
    """A name that leads out is no path for nnscan: the member is left out, nothing is written anywhere."""
    inner = image_folder(tmp_path / "inner" / "data")
    path = tmp_path / "inner" / "data.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(inner, arcname=".")
        member = tarfile.TarInfo(name)
        member.size = 3
        archive.addfile(member, io.BytesIO(b"out"))
    before = sorted(tmp_path.rglob("*"))
    dataset = load_dataset("image_folder", root=path, size=8)
    assert sum(len(part.labels) for part in dataset.splits.values()) == 16
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/nnscan_escape.png").exists()


def test_a_member_larger_than_any_image_is_not_read(tmp_path):
    """A gigabyte of zeros takes a megabyte in the archive."""
    root = image_folder(tmp_path / "data")
    (root / "train/a/bomb.png").touch()
    path = tmp_path / "data.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.add(root, arcname=".")
        member = tarfile.TarInfo("train/a/bomb.png")
        member.size = 2**29 + 1
        with open("/dev/zero", "rb") as zeros:
            archive.addfile(member, zeros)
    assert "has 536870913 bytes, more than 536870912" in refused(lambda: load(path), DataError, seconds=60)
