"""MATLAB's files, against scipy's writer and reader."""
from __future__ import annotations

import random

import numpy as np
import pytest

pytest.importorskip("mmengine")
io = pytest.importorskip("scipy.io")

from mmfusion_plugin.engine.mat_files import MatFile, MatFileError  # noqa: E402

KINDS = ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")


def arrays():
    rng = np.random.default_rng(0)
    found = {kind: (100 * rng.standard_normal((3, 5))).astype(kind) if kind[0] == "f" else
             rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, (3, 5), kind) for kind in KINDS}
    return found | dict(deep=rng.random((2, 3, 4, 5)), empty=np.zeros((0, 3)), one=np.array([[7.5]]), text="words",
                        large=rng.integers(0, 9, (300, 400)).astype("u1"))


@pytest.mark.parametrize("compressed", [False, True])
def test_what_scipy_wrote_comes_back(tmp_path, compressed):
    io.savemat(tmp_path / "a.mat", arrays(), do_compression=compressed)
    file = MatFile(tmp_path / "a.mat")
    assert file.names == list(arrays())
    for name, array in arrays().items():
        if name != "text":
            found = file.read(name)
            assert found.dtype == array.dtype and np.array_equal(found, array) and file.nbytes(name) == array.nbytes
            assert found.flags.writeable
    with pytest.raises(MatFileError, match=r"a\.mat .*'text' is text, expected an array of real numbers"):
        file.read("text")
    with pytest.raises(MatFileError, match=r"a\.mat holds no y; it holds \['deep', 'empty'"):
        file.read("y")


def test_official_files_read_as_scipy_reads_them(shared_data):
    for path in [*shared_data.glob("*/splits.mat"), *shared_data.glob("*/handwritten_6views.mat")]:
        expected, file = io.loadmat(path), MatFile(path)
        assert file.names
        for name in file.names:
            assert np.array_equal(file.read(name), expected[name])


def test_doubles_stored_as_bytes_and_the_other_byte_order(tmp_path):
    """MATLAB stores integers that fit in fewer bytes; scipy never does."""
    for little in (True, False):
        order = "little" if little else "big"

        def number(value, size=4, order=order):
            return value.to_bytes(size, order)

        flags = number(6) + number(8) + number(6) + number(0)
        shape = number(5) + number(8) + number(2) + number(3)
        name = (number(2 << 16 | 1) if little else number(2, 2) + number(1, 2)) + b"ab\0\0"
        data = number(3) + number(12) + b"".join(number(v, 2) for v in (1, 2, 3, 4, 5, 300)) + bytes(4)
        body = flags + shape + name + data
        (tmp_path / "a.mat").write_bytes(
            b" " * 124 + number(0x0100, 2) + (b"IM" if little else b"MI") + number(14) + number(len(body)) + body)
        found = MatFile(tmp_path / "a.mat").read("ab")
        assert found.dtype == "f8" and found.tolist() == [[1, 3, 5], [2, 4, 300]]
        assert np.array_equal(found, io.loadmat(tmp_path / "a.mat")["ab"])


@pytest.mark.parametrize(("value", "words"), [
    (np.array([[1 + 2j]]), "'x' is complex"), (np.array([[1, "a"]], object), "'x' is a cell array"),
    (dict(a=1.0), "'x' is a structure")])
def test_what_is_no_array_of_real_numbers_is_named(tmp_path, value, words):
    io.savemat(tmp_path / "a.mat", dict(x=value, y=np.ones((2, 2))))
    file = MatFile(tmp_path / "a.mat")
    assert file.nbytes("y") == 32 and file.read("y").sum() == 4
    with pytest.raises(MatFileError, match=words):
        file.read("x")


def test_files_of_another_kind_are_named(tmp_path):
    path = tmp_path / "a.mat"
    io.savemat(path, dict(x=1.0), format="4")
    for content, words in ((path.read_bytes(), "another kind of file"), (b"", "another kind"),
                           (b" " * 124 + b"\x00\x02IM", r"7\.3, which is HDF5; save it with -v7")):
        path.write_bytes(content)
        with pytest.raises(MatFileError, match=rf"a\.mat is no readable \.mat file: .*{words}"):
            MatFile(path)
    with pytest.raises(FileNotFoundError):
        MatFile(tmp_path / "nowhere.mat")


@pytest.mark.parametrize("compressed", [False, True])
def test_no_damaged_byte_does_more_than_a_typed_error(tmp_path, compressed):
    """scipy crashes the process with some of these."""
    path = tmp_path / "a.mat"
    io.savemat(path, dict(x=np.arange(6.0).reshape(2, 3), ab=np.ones((3, 1), "u1")), do_compression=compressed)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for at in range(124, len(whole)):
        for value in (0, 255, whole[at] ^ 1, rng.randrange(256)):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1:])
            try:
                file = MatFile(path)
                assert all(file.read(name).nbytes == file.nbytes(name) for name in file.names)
            except MatFileError:
                refused += 1
    assert refused > 200
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            names = MatFile(path).names
        except MatFileError:
            continue
        assert names != ["x", "ab"] or length > len(whole) - 8  # what is left out then is padding


def test_a_claim_beyond_what_the_bytes_can_hold_is_refused(tmp_path):
    path = tmp_path / "a.mat"
    io.savemat(path, dict(x=np.zeros((3, 5))))
    data = bytearray(path.read_bytes())
    place = bytes(data).index((3).to_bytes(4, "little") + (5).to_bytes(4, "little"))
    data[place:place + 8] = (2**31 - 1).to_bytes(4, "little") * 2
    path.write_bytes(data)
    assert MatFile(path).nbytes("x") == 8 * (2**31 - 1) ** 2
    with pytest.raises(MatFileError, match="'x' claims 4611686014132420609 numbers in"):
        MatFile(path).read("x")
