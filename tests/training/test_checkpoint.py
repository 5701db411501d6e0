"""Checkpoints: what is saved comes back bit for bit, damage is seen, and a killed process loses nothing."""

import json
import math
import os
import random
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import minidl
from minidl.errors import CheckpointError
from minidl.training import atomic, checkpoint
from minidl.training.checkpoint import BEST, LAST, PREVIOUS, load, load_latest, save, save_last

ROOT = Path(minidl.__file__).parents[1]
RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((4, 6)).astype(np.float32)


def assert_same(loaded: np.ndarray, saved: np.ndarray) -> None:
    assert loaded.shape == saved.shape
    assert loaded.dtype == saved.dtype.newbyteorder("=")
    assert loaded.tobytes() == np.array(saved, dtype=loaded.dtype, order="C").tobytes()


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(MATRIX, id="contiguous"),
        pytest.param(MATRIX.T, id="transposed"),
        pytest.param(np.asfortranarray(MATRIX), id="fortran"),
        pytest.param(MATRIX[:, ::2], id="sliced"),
        pytest.param(MATRIX[::-1, ::-1], id="negative-strides"),
        pytest.param(np.broadcast_to(np.float32(3), (5, 7)), id="broadcast"),
        pytest.param(MATRIX.reshape(2, 3, 4).transpose(2, 0, 1), id="permuted"),
        pytest.param(np.array(2.5, np.float32), id="0-d"),
        pytest.param(np.float64(2.5), id="scalar"),
        pytest.param(np.zeros((0,), np.float32), id="empty"),
        pytest.param(np.zeros((3, 0, 2))[::-1], id="empty-strided"),
        pytest.param(np.zeros(0, bool), id="empty-bool"),
        pytest.param(np.array([True, False, True])[::-1], id="bool"),
        pytest.param(np.array([-(2**63), 2**63 - 1]), id="int64"),
        pytest.param(np.arange(256, dtype=np.uint8), id="uint8"),
        pytest.param(np.array([2**64 - 1], np.uint64), id="uint64"),
        pytest.param(np.array([1 / 3, -0.0, np.nan, np.inf, 5e-324]), id="float64"),
        pytest.param(np.array([1 / 3, 6e-8], np.float16), id="float16"),
        pytest.param(np.arange(5, dtype=">i4"), id="big-endian"),
        pytest.param(np.frombuffer(b"\0" + MATRIX.tobytes(), np.float32, offset=1, count=24), id="misaligned"),
    ],
)
def test_arrays_return_bit_for_bit(tmp_path: Path, array: np.ndarray) -> None:
    save(tmp_path / "a", {"other": MATRIX, "x": array}, {})
    tensors = load(tmp_path / "a").tensors
    assert list(tensors) == ["other", "x"]
    assert_same(tensors["x"], array)
    assert_same(tensors["other"], MATRIX)
    assert tensors["x"].flags.writeable
    assert tensors["x"].flags.c_contiguous


def test_no_tensors(tmp_path: Path) -> None:
    save(tmp_path / "a", {}, {"only": "metadata"})
    assert load(tmp_path / "a") == checkpoint.Checkpoint({}, {"only": "metadata"})


def test_floats_in_metadata_return_bit_for_bit(tmp_path: Path) -> None:
    bits = [random.Random(0).getrandbits(64) for _ in range(2000)]
    values = [struct.unpack("<d", struct.pack("<Q", b))[0] for b in bits]
    values = [v for v in values if not math.isnan(v)] + [0.1, -0.0, 5e-324, math.inf, -math.inf]
    save(tmp_path / "a", {}, {"values": values, "nan": math.nan})
    metadata = load(tmp_path / "a").metadata
    assert struct.pack(f"<{len(values)}d", *metadata["values"]) == struct.pack(f"<{len(values)}d", *values)
    assert math.isnan(metadata["nan"])


def test_metadata_return_as_they_were(tmp_path: Path) -> None:
    state = np.random.default_rng(3).bit_generator.state  # integers of 128 bits
    metadata = {"z": None, "a": [1, True, "é\n\ud800\x7f"], "rng": state, "nested": {"": {"deep": 2**64 - 1}}}
    save(tmp_path / "a", {}, metadata)
    assert load(tmp_path / "a").metadata == metadata
    assert list(load(tmp_path / "a").metadata) == list(metadata)


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    for name in "abcdef":
        save(tmp_path / name, {"w": MATRIX, "b": MATRIX[0]}, {"epoch": 1, "lr": 0.1})
    assert len({(tmp_path / name).read_bytes() for name in "abcdef"}) == 1


def test_other_programs_can_read_the_file(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", {"w": MATRIX.T}, {})
    assert_same(safetensors.numpy.load_file(tmp_path / "a.safetensors")["w"], MATRIX.T)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"x": [1.0]}, {}, "tensor x must be a NumPy array, not list"),
        ({"x": np.array([object()])}, {}, "tensor x has dtype object"),
        ({"x": np.zeros(2, np.complex64)}, {}, "tensor x has dtype complex64"),
        ({"__metadata__": MATRIX}, {}, "other than __metadata__"),
        ({}, {"a": {1: 2}}, "key 1; keys must be text"),
        ({}, {"a": [({2: 2},)]}, "key 2; keys must be text"),
        ({}, {"a": np.float32(1)}, "float32"),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path: Path, tensors: dict, metadata: dict, message: str) -> None:
    save(tmp_path / "a", {"x": MATRIX}, {})
    with pytest.raises(TypeError, match=message):
        save(tmp_path / "a", tensors, metadata)
    assert_same(load(tmp_path / "a").tensors["x"], MATRIX)


# Damage


def test_a_flipped_bit_is_seen_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save(path, {"w": np.array([[1.0, 2.0]], np.float32), "s": np.array(True)}, {"epoch": 3, "lr": 1e-5})
    good = path.read_bytes()
    every_bit = range(8 * 16)  # of the length and the header's beginning; then a bit of each byte
    for bit in (*every_bit, *(8 * i + i % 8 for i in range(16, len(good)))):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as error:
            load(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)


def test_a_truncated_or_longer_file_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save(path, {"w": MATRIX, "b": MATRIX[0]}, {"epoch": 3})
    good = path.read_bytes()
    for size in (*range(40), *range(40, len(good), 7), len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(CheckpointError, match=r"truncated to \d+|is empty|is not a safetensors file"):
            load(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(CheckpointError, match="is damaged"):
        load(path)


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    """Edit the file's header without harm to its length field."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    assert header.count(old) >= 1
    header = header.replace(old, new, 1)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def sealed_file(path: Path, document: dict, tensors: dict[str, np.ndarray]) -> None:
    """A file whose hashes are right for a document that `save` would not write."""
    text = checkpoint._sealed(json.dumps(document))
    path.write_bytes(safetensors.numpy.save(tensors, {"checkpoint": text}))


def test_the_tensor_that_is_damaged_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a", {"conv.weight": MATRIX, "fc.bias": MATRIX[0]}, {})
    data = bytearray((tmp_path / "a").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a: is damaged: the bytes of tensor 'fc.bias' do not match their SHA"):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"F32"', b'"I32"'), (b"[4,6]", b"[6,4]"), (b"[4,6]", b"[24]")],
    ids=["dtype", "shape", "rank"],
)
def test_dtype_and_shape_are_under_the_hash(tmp_path: Path, old: bytes, new: bytes) -> None:
    save(tmp_path / "a", {"w": MATRIX}, {})
    rewrite(tmp_path / "a", old, new)
    with pytest.raises(CheckpointError, match="tensor 'w' do not match"):
        load(tmp_path / "a")


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a", {"w": MATRIX}, {})
    entry = b'"w":{"dtype":"F32","shape":[4,6],"data_offsets":[0,96]}'
    rewrite(tmp_path / "a", entry, entry + b"," + entry)
    assert "w" in safetensors.numpy.load_file(tmp_path / "a")  # which safetensors itself accepts
    with pytest.raises(CheckpointError, match="a key twice"):
        load(tmp_path / "a")


def test_tensors_and_hashes_must_agree(tmp_path: Path) -> None:
    document = {"format": "minidl", "version": 1, "metadata": {}, "sha256": {"w": checkpoint._hash(MATRIX)}}
    sealed_file(tmp_path / "a", document, {"w": MATRIX})
    assert_same(load(tmp_path / "a").tensors["w"], MATRIX)
    sealed_file(tmp_path / "a", document, {"w": MATRIX, "extra": MATRIX})
    with pytest.raises(CheckpointError, match=r"do not match \('extra'\)"):
        load(tmp_path / "a")
    sealed_file(tmp_path / "a", document, {})
    with pytest.raises(CheckpointError, match=r"do not match \('w'\)"):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "has checkpoint format version 2; this minidl reads version 1"),
        ({"version": None}, "format version None"),
        ({"format": "other"}, "not a minidl checkpoint"),
        ({"metadata": []}, "lacks metadata or hashes"),
        ({"sha256": None}, "lacks metadata or hashes"),
    ],
)
def test_other_formats_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    document = {"format": "minidl", "version": 1, "metadata": {}, "sha256": {}} | changes
    sealed_file(tmp_path / "a", document, {})
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello", "is not a safetensors file$"),
        (b"PK\x03\x04" + bytes(100), "PyTorch or pickle file"),
        (b"\x80\x02}q\x00." + bytes(100), "PyTorch or pickle file"),
        (bytes(200), "is not a safetensors file$"),
        (b"\xff" * 8 + b"{" + bytes(100), "is not a safetensors file$"),
        ((50).to_bytes(8, "little") + b"{" + bytes(80), "header is not JSON"),
        ((60_000).to_bytes(8, "little") + b'{"a":' * 12_000, "header is not JSON"),
        (safetensors.numpy.save({"w": MATRIX}), "a safetensors file but not a minidl checkpoint"),
        (safetensors.numpy.save({"w": MATRIX}, {"format": "pt"}), "a safetensors file but not a minidl checkpoint"),
    ],
)
def test_foreign_files_are_named_for_what_they_are(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as error:
        load(tmp_path / "a")
    assert str(error.value).startswith(f"{tmp_path / 'a'}: ")


def test_absent_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone: no such file$"):
        load(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be read: Not a directory|no such file"):
        load(tmp_path / "file" / "a")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="is not a regular file"):
            load(tmp_path / "pipe")


# Writing


@pytest.mark.skipif(os.name != "posix", reason="umask is POSIX's")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    for mask, expected in ((0o022, 0o644), (0o007, 0o660), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            save(tmp_path / "a", {}, {})
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == expected


def test_leftovers_of_killed_saves_are_swept_and_nothing_else(tmp_path: Path) -> None:
    stale = tmp_path / f".{LAST}.0123abcd.tmp"
    others = [tmp_path / f".{BEST}.0123abcd.tmp", tmp_path / f".{LAST}.backup.tmp", tmp_path / "notes.tmp"]
    for path in (stale, *others):
        path.write_bytes(b"half")
    save(tmp_path / LAST, {"w": MATRIX}, {})
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / LAST, *others])


def test_a_save_syncs_the_file_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, rename = os.fsync, Path.replace

    def record_sync(descriptor: int) -> None:
        events.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        sync(descriptor)

    def record_rename(self: Path, target: Path) -> Path:
        events.append(f"rename to {target.name}")
        return rename(self, target)

    monkeypatch.setattr(atomic.os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record_rename)
    save_last(tmp_path, {"w": MATRIX}, {})
    save_last(tmp_path, {"w": MATRIX}, {})
    first = ["sync file", f"rename to {LAST}", "sync folder"]
    second = ["sync file", f"rename to {PREVIOUS}", f"rename to {LAST}", "sync folder"]
    assert events == [e for e in first + second if os.name == "posix" or e != "sync folder"]


def test_what_does_not_read_back_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_last(tmp_path, {"w": MATRIX}, {"epoch": 1})
    encode = checkpoint._encode
    monkeypatch.setattr(checkpoint, "_encode", lambda *given: encode(*given)[:-1] + b"!")  # a writer that errs
    with pytest.raises(CheckpointError, match=r"last.safetensors: what was written does not read back .*tensor 'w'"):
        save_last(tmp_path, {"w": MATRIX}, {"epoch": 2})
    assert [p.name for p in tmp_path.iterdir()] == [LAST]
    assert load(tmp_path / LAST).metadata == {"epoch": 1}


@pytest.mark.parametrize("where", ["file/a", "file/deeper/a", "folder", "nul\0/a", "x" * 300], ids=repr)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot be written: ") as error:
        save(tmp_path / where, {"w": MATRIX}, {})
    assert str(tmp_path / where) in str(error.value)
    assert not list(tmp_path.glob(".*"))


# The last and the one before it


def last_epoch(folder: Path) -> tuple[int, str | None]:
    saved, note = load_latest(folder)
    assert_same(saved.tensors["w"], np.full(1000, saved.metadata["epoch"], np.float32))
    return saved.metadata["epoch"], note


def save_epochs(folder: Path, *epochs: int) -> None:
    for epoch in epochs:
        save_last(folder, {"w": np.full(1000, epoch, np.float32)}, {"epoch": epoch})


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    save_epochs(folder, 1)
    assert sorted(p.name for p in folder.iterdir()) == [LAST]
    save_epochs(folder, 2, 3)
    assert sorted(p.name for p in folder.iterdir()) == [LAST, PREVIOUS]
    assert last_epoch(folder) == (3, None)
    assert load(folder / PREVIOUS).metadata == {"epoch": 2}


def test_a_damaged_or_missing_last_falls_back_and_says_so(tmp_path: Path) -> None:
    save_epochs(tmp_path, 1, 2)
    damage(tmp_path / LAST)
    epoch, note = last_epoch(tmp_path)
    assert epoch == 1
    assert note is not None
    assert note.startswith(f"{tmp_path / LAST}: is damaged: truncated")
    assert "previous.safetensors" in note
    (tmp_path / LAST).unlink()
    epoch, note = last_epoch(tmp_path)
    assert epoch == 1
    assert note is not None
    assert "no such file" in note


def test_a_damaged_last_does_not_displace_a_good_previous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_epochs(tmp_path, 1, 2)
    damage(tmp_path / LAST)
    save_epochs(tmp_path, 3)
    assert last_epoch(tmp_path) == (3, None)
    assert load(tmp_path / PREVIOUS).metadata == {"epoch": 1}


def test_no_good_checkpoint_at_all(tmp_path: Path) -> None:
    save_epochs(tmp_path, 1, 2)
    damage(tmp_path / LAST)
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(CheckpointError, match=r"no good checkpoint \(last.*truncated.*; previous.*no such file\)"):
        load_latest(tmp_path)


def test_at_every_step_of_a_save_one_of_the_two_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_epochs(tmp_path, 1, 2)
    seen: list[int] = []
    rename = Path.replace

    def watch(self: Path, target: Path) -> Path:
        seen.append(last_epoch(tmp_path)[0])
        result = rename(self, target)
        seen.append(last_epoch(tmp_path)[0])
        return result

    monkeypatch.setattr(Path, "replace", watch)
    save_epochs(tmp_path, 3)
    assert seen == [2, 2, 2, 3]


SAVER = """
import sys
import numpy as np
from minidl.training.checkpoint import save_last
epoch = int(sys.argv[2])
while True:
    epoch += 1
    save_last(sys.argv[1], {"w": np.full(300_000, epoch, np.float32)}, {"epoch": epoch})
    print(epoch, flush=True)
"""


def test_a_process_killed_as_it_saves_loses_nothing_that_it_had_finished(tmp_path: Path) -> None:
    delays = random.Random(0)
    epoch = 0
    for _ in range(6):
        command = [sys.executable, "-c", SAVER, str(tmp_path), str(epoch)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
            assert process.stdout is not None
            assert int(process.stdout.readline()) == epoch + 1
            time.sleep(delays.uniform(0.0, 0.1))
            process.kill()  # SIGKILL on POSIX
            finished = [epoch + 1, *(int(line) for line in process.stdout if line.endswith("\n"))]
        saved, _ = load_latest(tmp_path)
        epoch = saved.metadata["epoch"]
        assert epoch >= finished[-1]
        assert_same(saved.tensors["w"], np.full(300_000, epoch, np.float32))
    save_last(tmp_path, {"w": MATRIX}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [LAST, PREVIOUS]
