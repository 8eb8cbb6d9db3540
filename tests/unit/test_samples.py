"""Sample files are read for what they are, and hostile ones are refused without taking memory."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeml.exporter.samples import load_samples, make_samples
from edgeml.runtime.backends import Array
from edgeml.wire.errors import PlanError
from edgeml.wire.manifest import Signature, TensorSpec

IMAGES = Signature((TensorSpec("image", "float32", ("batch", 4, 4, 3)),), (TensorSpec("p", "float32", ("batch", 2)),))
TOKENS = Signature((TensorSpec("ids", "int32", ("batch", 5)),), (TensorSpec("p", "float32", ("batch", 2)),))
STATEFUL = Signature(
    (
        TensorSpec("audio", "float32", ("batch", 8)),
        TensorSpec("state", "float32", (2, 1, 3)),
        TensorSpec("gain", "float32", ()),
    ),
    (TensorSpec("p", "float32", ("batch", 2)),),
)


def save(path: Path, **arrays: Array) -> Path:
    np.savez(path / "samples.npz", allow_pickle=False, **arrays)
    return path / "samples.npz"


def npy(shape: str, descr: str = "'<f4'", body: bytes = b"") -> bytes:
    """An `.npy` file whose header may promise anything."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def packed(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path / "samples.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path / "samples.npz"


def test_a_single_input_may_stand_under_x_or_its_own_name(tmp_path: Path) -> None:
    values = np.arange(2 * 48, dtype=np.float32).reshape(2, 4, 4, 3)
    for name in ("x", "image"):
        samples = load_samples(save(tmp_path, **{name: values}), IMAGES)
        np.testing.assert_array_equal(samples.inputs["image"], values)


def test_a_sample_may_have_a_leading_batch_axis_of_1(tmp_path: Path) -> None:
    values = np.arange(2 * 48, dtype=np.float32).reshape(2, 1, 4, 4, 3)
    samples = load_samples(save(tmp_path, x=values), IMAGES)
    assert samples.inputs["image"].shape == (2, 4, 4, 3)
    assert samples.sha256 == load_samples(save(tmp_path, x=values[:, 0]), IMAGES).sha256


def test_uint8_pictures_feed_a_float_input_unscaled(tmp_path: Path) -> None:
    samples = load_samples(save(tmp_path, x=np.full((1, 4, 4, 3), 255, np.uint8)), IMAGES)
    assert samples.inputs["image"].dtype == np.float32
    assert samples.inputs["image"].max() == 255.0


def test_float64_is_read_as_float32(tmp_path: Path) -> None:
    samples = load_samples(save(tmp_path, x=np.full((1, 4, 4, 3), 0.1)), IMAGES)
    assert samples.inputs["image"][0, 0, 0, 0] == np.float32(0.1)


def test_integers_stay_integers_when_they_fit(tmp_path: Path) -> None:
    samples = load_samples(save(tmp_path, x=np.arange(10, dtype=np.int64).reshape(2, 5)), TOKENS)
    assert samples.inputs["ids"].dtype == np.int32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param(np.full((1, 5), 2**40), "a value that int32 holds, got 1099511627776", id="too large"),
        pytest.param(np.zeros((1, 5), np.float32), "expected int32, got float32", id="float to integer"),
        pytest.param(np.zeros((3, 6), np.int32), r"expected int32 \(samples, 5\), got \(3, 6\)", id="wrong shape"),
        pytest.param(np.zeros(5, np.int32), "add a first axis that counts samples", id="one sample without first axis"),
        pytest.param(np.zeros((0, 5), np.int32), "holds no samples", id="empty"),
        pytest.param(np.array([["a"] * 5]), "expected numbers, got dtype <U1", id="text"),
    ],
)
def test_values_that_do_not_fit_are_refused_with_both_sides(tmp_path: Path, values: Array, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        load_samples(save(tmp_path, x=values), TOKENS)


def test_transposed_images_are_told_to_transpose(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="transpose them"):
        load_samples(save(tmp_path, x=np.zeros((2, 3, 4, 4), np.float32)), IMAGES)


def test_a_large_integer_that_a_float_would_change_is_refused(tmp_path: Path) -> None:
    values = np.full((1, 4, 4, 3), 2**24 + 1, np.int64)
    with pytest.raises(PlanError, match="a value that float32 holds, got 16777217"):
        load_samples(save(tmp_path, x=values), IMAGES)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300], ids=["nan", "infinity", "beyond float32"])
def test_samples_that_are_not_finite_are_named(tmp_path: Path, bad: float) -> None:
    values = np.zeros((3, 4, 4, 3))
    values[2, 1, 0, 0] = bad
    with pytest.raises(PlanError, match="2"):
        load_samples(save(tmp_path, x=values), IMAGES)


def test_nan_passes_where_it_marks_a_missing_value_but_infinity_does_not(tmp_path: Path) -> None:
    values = np.zeros((1, 4, 4, 3), np.float32)
    values[0, 0, 0, 0] = np.nan
    assert np.isnan(load_samples(save(tmp_path, x=values), IMAGES, allow_nan=True).inputs["image"][0, 0, 0, 0])
    values[0, 0, 0, 0] = np.inf
    with pytest.raises(PlanError, match="finite"):
        load_samples(save(tmp_path, x=values), IMAGES, allow_nan=True)


def test_states_and_scalars_have_no_batch_axis_to_put_back(tmp_path: Path) -> None:
    audio, state = np.ones((4, 8), np.float32), np.ones((4, 2, 1, 3), np.float32)
    samples = load_samples(save(tmp_path, audio=audio, state=state, gain=np.arange(4, dtype=np.float32)), STATEFUL)
    feed = list(samples.feeds(STATEFUL))[3]
    assert {name: values.shape for name, values in feed.items()} == {"audio": (1, 8), "state": (2, 1, 3), "gain": ()}
    assert feed["gain"] == 3.0


def test_a_missing_input_is_named_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"no array for input 'state': expected 'state', got 'audio'"):
        load_samples(save(tmp_path, audio=np.ones((4, 8), np.float32)), STATEFUL)


def test_inputs_of_different_lengths_are_refused(tmp_path: Path) -> None:
    arrays = {"audio": np.ones((4, 8), np.float32), "state": np.ones((3, 2, 1, 3), np.float32), "gain": np.ones(4, np.float32)}
    with pytest.raises(PlanError, match="different numbers of samples"):
        load_samples(save(tmp_path, **arrays), STATEFUL)


def test_labels_are_class_numbers_or_targets(tmp_path: Path) -> None:
    x = np.zeros((3, 5), np.int32)
    classes = load_samples(save(tmp_path, x=x, y=np.array([[0], [1], [2]], np.uint8)), TOKENS).labels
    assert classes is not None
    assert classes.dtype == np.int64
    assert classes.tolist() == [0, 1, 2]
    targets = load_samples(save(tmp_path, x=x, y=np.zeros((3, 2), np.float32)), TOKENS).labels
    assert targets is not None
    assert targets.dtype == np.float64
    assert targets.shape == (3, 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        pytest.param(np.zeros(2, np.int64), "expected 3 labels", id="too few"),
        pytest.param(np.eye(3, dtype=np.int64), "one-hot", id="one-hot"),
        pytest.param(np.array([0.0, np.nan, 1.0]), "finite", id="nan"),
    ],
)
def test_wrong_labels_are_refused(tmp_path: Path, labels: Array, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        load_samples(save(tmp_path, x=np.zeros((3, 5), np.int32), y=labels), TOKENS)


def test_arrays_of_other_names_are_not_even_read(tmp_path: Path) -> None:
    header = npy(f"({2**40},)")
    values = io.BytesIO()
    np.save(values, np.zeros((1, 5), np.int32))
    assert len(load_samples(packed(tmp_path, x=values.getvalue(), other=header), TOKENS)) == 1


def test_a_header_of_2_to_the_40_elements_takes_no_memory(tmp_path: Path) -> None:
    path = packed(tmp_path, x=npy(f"({2**40}, 5)", body=b"\0" * 64))
    tracemalloc.start()
    try:
        with pytest.raises(PlanError, match="promises more or less than it holds"):
            load_samples(path, TOKENS)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_zip_bomb_is_refused_by_its_directory(tmp_path: Path) -> None:
    path = packed(tmp_path, x=npy("(20000000,)", body=b"\0" * 80_000_000))
    assert path.stat().st_size < 200_000
    with pytest.raises(PlanError, match="unpacks to too much: expected at most 1000000 bytes"):
        load_samples(path, TOKENS, limit_bytes=1_000_000)


@pytest.mark.parametrize(
    "header",
    [
        npy("(-1, 5)"),
        npy("(2, 5)"),
        npy("(1, 5)", descr="'|O'"),
        npy("(1, 5)", descr="[('a', '<f4')]"),
        npy("1"),
        b"\x93NUMPY\x09\x00",
    ],
    ids=["negative", "too short", "objects", "records", "no tuple", "version"],
)
def test_a_damaged_array_is_refused(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(PlanError):
        load_samples(packed(tmp_path, x=header), TOKENS)


def test_pickled_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (tmp_path / "pwned",))

    body = pickle.dumps(Trap())
    with pytest.raises(PlanError, match="expected numbers, got dtype object"):
        load_samples(packed(tmp_path, x=npy("(1,)", descr="'|O'", body=body)), TOKENS)
    assert not (tmp_path / "pwned").exists()


def test_every_truncation_of_a_file_is_refused_in_words(tmp_path: Path) -> None:
    data = save(tmp_path, x=np.arange(50, dtype=np.int32).reshape(10, 5)).read_bytes()
    for length in range(0, len(data), 7):
        (tmp_path / "cut.npz").write_bytes(data[:length])
        with pytest.raises(PlanError):
            load_samples(tmp_path / "cut.npz", TOKENS)


def test_no_changed_byte_gives_anything_but_samples_or_a_plan_error(tmp_path: Path) -> None:
    data = save(tmp_path, x=np.arange(50, dtype=np.int32).reshape(10, 5)).read_bytes()
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0xFF
        (tmp_path / "bad.npz").write_bytes(broken)
        try:
            load_samples(tmp_path / "bad.npz", TOKENS)
        except PlanError:
            continue


def test_a_missing_file_is_a_plan_error(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no file"):
        load_samples(tmp_path / "none.npz", TOKENS)


def test_the_digest_depends_on_content_and_nothing_else() -> None:
    x = np.arange(10, dtype=np.int32).reshape(2, 5)
    assert make_samples({"ids": x}).sha256 == make_samples({"ids": np.asfortranarray(x).astype(">i4").astype("<i4")}).sha256
    assert make_samples({"ids": x}).sha256 != make_samples({"ids": x.reshape(5, 2)}).sha256
    assert make_samples({"ids": x}).sha256 != make_samples({"ids": x}, np.zeros(2, np.int64)).sha256


def test_overlap_counts_equal_samples_whatever_their_labels() -> None:
    x = np.arange(30, dtype=np.int32).reshape(6, 5)
    evaluation, calibration = make_samples({"ids": x}, np.zeros(6, np.int64)), make_samples({"ids": x[[1, 4, 4]]})
    assert evaluation.overlap(calibration) == 2
    assert evaluation.describe(calibration).overlap == 2
    assert evaluation.take([0, 2]).overlap(calibration) == 0


def test_a_scalar_input_is_fed_as_an_array_without_axes() -> None:
    signature = Signature((TensorSpec("gain", "float32", ()),), (TensorSpec("y", "float32", ()),))
    fed = [feed["gain"] for feed in make_samples({"gain": np.array([1, 2], np.float32)}).feeds(signature)]
    assert [(type(value), value.shape, float(value)) for value in fed] == [(np.ndarray, (), 1.0), (np.ndarray, (), 2.0)]
