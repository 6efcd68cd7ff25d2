"""A list on the disk behaves as a list in memory does."""

from pathlib import Path

import pytest

from data_schemas.disk_list import DiskList
from data_schemas.errors import DataError


def test_values_are_read_as_they_were_written_while_others_are_added():
    values = [{"text": "é" * 9}, b"\xff", None, 7, ["a", [1.5]]]
    found = DiskList()
    assert not found and list(found) == []
    for number, value in enumerate(values):
        found.append(value)
        assert found[0] == values[0] and found[-1] == value and list(found) == values[: number + 1]
    found.extend(values)
    assert len(found) == 10 and found[3:7] == (values + values)[3:7] and next(reversed(found)) == values[-1]
    with pytest.raises(IndexError):
        found[10]


def test_two_loops_side_by_side_do_not_disturb_each_other():
    found = DiskList()
    found.extend(range(5))
    assert list(zip(found, reversed(found), strict=True)) == list(zip(range(5), reversed(range(5)), strict=True))


def test_a_temporary_folder_that_cannot_be_written_is_named(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(DataError, match=r"rows can't be written into this folder: .*No space left on device"):
        DiskList().append(1)


def test_a_disk_that_is_full_once_the_buffer_is_written_is_named():
    found = DiskList()
    found._file = Path("/dev/full").open("r+b", buffering=1 << 20)  # noqa: SIM115 - as the list's own
    found._file.tell = lambda: found._end
    found.append("x")
    with pytest.raises(DataError, match="rows can't be written into this folder"):
        found[0]
    with pytest.raises(DataError, match="rows can't be written into this folder"):
        list(found)
