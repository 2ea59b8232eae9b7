import os
import stat
import threading
from pathlib import Path

import pytest

from nifi_ns.files import atomic_path, write_bytes


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "a.bin", b"data")
        assert mode(tmp_path / "a.bin") == 0o666 & ~umask
    finally:
        os.umask(before)


def test_the_umask_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail(f"set the umask of all threads to {mask:o}"))
    write_bytes(tmp_path / "a.bin", b"data")
    assert (tmp_path / "a.bin").read_bytes() == b"data"


def test_a_file_is_complete_or_absent(tmp_path: Path):
    path = tmp_path / "deep" / "a.bin"
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    assert not list(path.parent.iterdir())
    write_bytes(path, b"old")
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".bin" and temporary.parent == path.parent
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_many_threads_can_write_the_same_file(tmp_path: Path):
    path = tmp_path / "a.bin"
    threads = [threading.Thread(target=write_bytes, args=(path, bytes([i]) * 10_000)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(path.read_bytes())) == 1 and len(path.read_bytes()) == 10_000
    assert list(tmp_path.iterdir()) == [path]
