"""Generated images: a fixed share of each batch, from a file of which no more is read than that."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_runs import Hook, assert_same_run, recipe, student_recipe

from limbeck.config import AugmentOptions, DataOptions
from limbeck.data import DataBundle, Pixels, Source, build_data, generated, open_stream
from limbeck.data.generated import MixedSource, open_generated
from limbeck.data.loader import epoch_batches, steps_per_epoch
from limbeck.data.npz import map_arrays
from limbeck.draws import permutation
from limbeck.engine.fit import fit
from limbeck.errors import UserError

N, M, SHAPE = 50, 300, (3, 4, 4)


def generated_arrays(count=M, classes=5):
    """Image k is filled with numbers that tell k; its label is k modulo the classes."""
    images = np.zeros((count, 4, 4, 3), np.uint8)
    images[..., 0, :, 1] = (np.arange(count) % 256)[:, None]
    images[..., 3, :, 2] = (np.arange(count) // 256)[:, None]
    return {"image": images, "label": np.arange(count) % classes}


@pytest.fixture
def path(tmp_path):
    np.savez(tmp_path / "generated.npz", **generated_arrays())
    return tmp_path / "generated.npz"


def opened(path, image_shape=SHAPE, num_classes=5, maximum=255):
    return open_generated(path, image_shape=image_shape, num_classes=num_classes, maximum=maximum)


def mixed(path, fraction=0.7, n=N):
    images = (torch.arange(n * 48) % 251).to(torch.uint8).view(n, *SHAPE)
    return MixedSource(images, torch.arange(n) % 5, Pixels(255, (0.0,) * 3, (1.0,) * 3), opened(path), fraction)


def batches(source, epoch=1, **options):
    return list(epoch_batches(source, **{"batch_size": 20, "seed": 3, "epoch": epoch, "drop_last": False, **options}))


# --- what a batch holds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fraction", "share"), [(0.7, 14), (0.5, 10), (0.03, 1), (0.97, 19)])
def test_each_batch_has_the_same_number_of_generated_images(fraction, share, path):
    for batch in batches(mixed(path, fraction)):
        assert len(batch.labels) == 20
        assert (batch.indices >= N).sum() == share


@pytest.mark.parametrize("fraction", [0.1, 0.7, 0.9])
@pytest.mark.parametrize(("drop_last", "steps"), [(False, 3), (True, 2)])
def test_an_epoch_has_as_many_steps_as_without_generated_images(fraction, drop_last, steps, path):
    """Of full batches, so that the last incomplete one is a full one, or left out."""
    found = batches(mixed(path, fraction), drop_last=drop_last)
    assert [len(batch.labels) for batch in found] == [20] * steps
    assert steps == steps_per_epoch(N, 20, drop_last)


def test_a_batch_holds_the_images_and_labels_of_its_indices(path):
    source, arrays = mixed(path), generated_arrays()
    for batch in batches(source):
        for image, label, index in zip(batch.images, batch.labels, batch.indices.tolist(), strict=True):
            own = index < N
            expected = source.images[index] if own else torch.from_numpy(arrays["image"][index - N]).permute(2, 0, 1)
            assert torch.equal(image, expected)
            assert int(label) == (index if own else index - N) % 5
        assert batch.images.is_contiguous()


def test_no_batch_lies_in_the_memory_of_the_originals(path):
    source = mixed(path)
    before = source.images.clone()
    for batch in batches(source):
        batch.images.zero_()
    assert torch.equal(source.images, before)


def test_the_original_images_run_through_permutation_after_permutation(path):
    """Over the ends of epochs: place p of their stream is place p mod n of permutation p // n."""
    source, place = mixed(path), 0
    orders = [permutation(3, number, N) for number in range(5)]
    for epoch in range(1, 12):
        for batch in batches(source, epoch):
            expected = torch.stack([orders[p // N][p % N] for p in range(place, place + 6)])
            assert torch.equal(batch.indices[batch.indices < N].sort().values, expected.sort().values)
            place += 6
    assert place == 198


def test_few_originals_fill_a_batch_by_several_permutations(path):
    found = batches(mixed(path, fraction=0.25, n=7), batch_size=20)
    assert len(found) == 1
    counts = found[0].indices[found[0].indices < 7].bincount(minlength=7)
    assert counts.sum() == 15
    assert set(counts.tolist()) == {2, 3}


def test_generated_images_are_drawn_uniformly_with_replacement(path):
    source = mixed(path)
    drawn = torch.cat([b.indices[b.indices >= N] for epoch in range(1, 301) for b in batches(source, epoch)]) - N
    expected = len(drawn) / M
    assert ((drawn.bincount(minlength=M) - expected) ** 2 / expected).sum() < M + 5 * (2 * M) ** 0.5
    one_epoch = torch.cat([b.indices[b.indices >= N] for b in batches(source)])
    assert len(one_epoch.unique()) < len(one_epoch) == 42


def test_both_kinds_are_anywhere_in_a_batch(path):
    """Or micro-batches and the parts of ranks would hold one kind alone."""
    kinds = torch.stack([b.indices >= N for epoch in range(1, 101) for b in batches(mixed(path), epoch)]).float()
    assert (kinds.mean(0) - 0.7).abs().max() < 5 * (0.21 / 300) ** 0.5


@pytest.mark.parametrize("start_step", [1, 2])
@pytest.mark.parametrize("epoch", [1, 4])
def test_resuming_in_mid_epoch_gives_the_batches_of_an_unbroken_one(start_step, epoch, path):
    unbroken = batches(mixed(path), epoch)[start_step:]
    for one, two in zip(unbroken, batches(mixed(path), epoch, start_step=start_step), strict=True):
        assert one.step == two.step
        assert torch.equal(one.indices, two.indices)


def test_the_parts_of_the_ranks_make_the_batch_of_one_rank(path):
    ranks = [batches(mixed(path), rank=rank, world=3) for rank in range(3)]
    for whole, *parts in zip(batches(mixed(path)), *ranks, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_other_epochs_and_seeds_draw_others(path):
    first = batches(mixed(path))[0].indices
    assert not torch.equal(first, batches(mixed(path), epoch=2)[0].indices)
    assert not torch.equal(first, batches(mixed(path), seed=4)[0].indices)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_a_batch_without_room_for_both_kinds_is_an_error(fraction, path):
    with pytest.raises(UserError) as caught:
        batches(mixed(path, fraction))
    assert str(caught.value) == (
        "`data.generated_fraction` expected a share that leaves both kinds of images a place in a batch of 20, "
        f"got {fraction}"
    )


def test_equal_images_have_views_of_their_own(tmp_path):
    """Original and generated images are all alike: their crops differ as their indices do."""
    image = torch.arange(48, dtype=torch.uint8).view(SHAPE)
    alike = np.broadcast_to(image.permute(1, 2, 0).numpy(), (M, 4, 4, 3))
    np.savez(tmp_path / "alike.npz", image=alike, label=np.zeros(M, int))
    source = mixed(tmp_path / "alike.npz", fraction=0.5, n=20)
    source.images.copy_(image.expand(20, -1, -1, -1))
    bundle = DataBundle("alike", source, source, source, 5, SHAPE, torch.zeros(5), "", torch.device("cpu"))
    stream = open_stream(bundle, AugmentOptions(crop_padding=3, flip=True), batch_size=20, drop_last=False, seed=0)
    (batch,) = stream.batches(1)
    assert len(batch.images.flatten(1).unique(dim=0)) > 12  # of 98 views


# --- the file -------------------------------------------------------------------------------------------------


def test_a_file_is_mapped_and_never_read_whole(path, monkeypatch):
    monkeypatch.setattr(np, "load", None)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    images = opened(path).images
    assert images.base is not None
    assert not images.flags.owndata
    assert not images.flags.writeable


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", ">i4", "uint16"])
def test_a_mapped_array_is_that_of_numpy_load(dtype, tmp_path):
    arrays = {"image": generated_arrays()["image"], "label": np.arange(M).astype(dtype) % 5, "score": np.zeros(3)}
    np.savez(tmp_path / "a.npz", **arrays)
    for name, found in zip(arrays, map_arrays(tmp_path / "a.npz", list(arrays)), strict=True):
        assert np.array_equal(found.values, arrays[name])
        assert found.values.dtype == arrays[name].dtype
    _, labels = opened(tmp_path / "a.npz").take(torch.tensor([7, 299]))
    assert labels.dtype == torch.int64
    assert labels.tolist() == [2, 4] if dtype != "uint8" else labels.tolist() == [2, (299 - 256) % 5]


def test_members_of_any_name_length_extra_field_and_header_version_are_found(tmp_path):
    """As other programs write them: `zip -0` with times of its own, and headers of version 2."""
    arrays = generated_arrays()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, array in {"a_long_name_before": np.arange(3), **arrays}.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            info.extra = struct.pack("<HHI", 0x5455, 5, 1)[:8] + b"\0"
            with archive.open(info, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, version=(2, 0))
    assert np.array_equal(opened(tmp_path / "a.npz").images, arrays["image"])


def test_a_file_beyond_4_gigabytes_is_found_by_its_64_bit_places(tmp_path):
    """Sparse on the disk: the labels begin behind 2**32 bytes of black images."""
    count = 2**32 // 48 + 10
    path = tmp_path / "large.npz"
    with zipfile.ZipFile(path, "w") as archive:
        header = b"\x93NUMPY\x01\0" + struct.pack("<H", 118)
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, 4, 4, 3), }}".ljust(117) + "\n"
        info = zipfile.ZipInfo("image.npy")
        start = archive.fp.tell()
        info.header_offset, info.file_size, info.compress_size = start, 128 + 48 * count, 128 + 48 * count
        info.CRC = 0
        archive.fp.write(info.FileHeader(zip64=True) + header + text.encode())
        archive.fp.seek(48 * count, os.SEEK_CUR)
        archive.filelist.append(info)
        archive.NameToInfo[info.filename] = info
        archive.start_dir = archive.fp.tell()
        archive._didModify = True
        with archive.open("label.npy", "w") as file:
            np.lib.format.write_array(file, np.arange(5))
    images, labels = map_arrays(path, ("image", "label"))
    assert labels.values.tolist() == [0, 1, 2, 3, 4]
    assert images.values.shape == (count, 4, 4, 3)
    assert images.values[-1].max() == 0


def error_of(path, **options):
    with pytest.raises(UserError) as caught:
        opened(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_a_compressed_file_is_an_error_with_the_way_out(tmp_path, path):
    np.savez_compressed(tmp_path / "small.npz", **generated_arrays())
    assert error_of(tmp_path / "small.npz") == (
        "expected `image` without compression, so that a part of it can be read; write it by numpy.savez, or in a "
        f"shell: unzip {tmp_path / 'small.npz'} && zip -0 stored.npz *.npy"
    )


def test_a_missing_file_or_array_is_an_error(tmp_path):
    assert error_of(tmp_path / "none.npz") == "expected an .npz file; no such file or directory"
    np.savez(tmp_path / "a.npz", images=np.zeros(3), label=np.zeros(3))
    assert error_of(tmp_path / "a.npz") == "expected an array `image`, got 'images.npy', 'label.npy'"


def test_objects_are_never_unpickled(tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "marker",)

    np.savez(tmp_path / "a.npz", **generated_arrays() | {"label": np.array([Harmful()] * M, dtype=object)})
    assert error_of(tmp_path / "a.npz") == "expected `label` to be numbers, got Python objects, which are never read"
    assert not (tmp_path / "marker").exists()
    (tmp_path / "b.npz").write_bytes(pickle.dumps({"image": Harmful()}))
    assert error_of(tmp_path / "b.npz") == "expected an .npz file, got a truncated, damaged or foreign one"
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("kept", [0, 1, 1000, 0.5, 0.99, -1])
def test_a_truncated_file_is_an_error(kept, path):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert error_of(path) == "expected an .npz file, got a truncated, damaged or foreign one"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"PK\x03\x04", b"PK\x09\x09"),  # the header of a member
        (b"\x93NUMPY", b"\x93NUMPX"),
        (b"NUMPY\x01", b"NUMPY\x07"),  # a version to come
        (b"(300, 4, 4, 3)", b"(900, 4, 4, 3)"),  # larger than its place
        (b"(300, 4, 4, 3)", b"(300, 4, 4, 2)"),  # smaller
        (b"'shape': (300, 4", b"'shape': (-30, 4"),
        (b"'|u1'", b"'|q1'"),
        (b"'descr'", b"1/0,'\"'"),
    ],
)
def test_a_damaged_file_is_an_error(before, after, path):
    whole = path.read_bytes()
    assert before in whole
    path.write_bytes(whole.replace(before, after, 1))
    assert error_of(path) == "expected an .npz file, got a truncated, damaged or foreign one"


@pytest.mark.parametrize("place", [0, 1, 100])
def test_every_flipped_bit_of_the_directory_is_an_error_or_harmless(place, path):
    """Whatever zipfile and the header make of it, nothing but a UserError leaves."""
    whole = bytearray(path.read_bytes())
    start = whole.rindex(b"PK\x01\x02image"[:4])
    for at in range(start - 60 + place % 2, len(whole), 2 + place % 3):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (place + at) % 8
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            opened(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((M, 4, 4, 3), np.float32)}, "`image` of uint8 (N, 4, 4, 3), got float32 (300, 4, 4, 3)"),
        ({"image": np.zeros((M, 3, 4, 4), np.uint8)}, "`image` of uint8 (N, 4, 4, 3), got uint8 (300, 3, 4, 4)"),
        ({"image": np.zeros((M, 4, 4), np.uint8)}, "`image` of uint8 (N, 4, 4, 3), got uint8 (300, 4, 4)"),
        ({"label": np.zeros(M)}, "`label` of integers (300,), as there are images, got float64 (300,)"),
        ({"label": np.zeros(9, int)}, "`label` of integers (300,), as there are images, got int64 (9,)"),
        ({"label": np.zeros((M, 1), int)}, "`label` of integers (300,), as there are images, got int64 (300, 1)"),
        ({"label": np.full(M, 5)}, "`label` of 0 to 4, got 5"),
        ({"label": np.arange(M) % 5 - 1}, "`label` of 0 to 4, got -1"),
        ({"image": np.zeros((0, 4, 4, 3), np.uint8), "label": np.zeros(0, int)}, "at least one image, got none"),
    ],
)
def test_arrays_that_do_not_fit_are_an_error(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **generated_arrays() | arrays)
    assert error_of(tmp_path / "a.npz") == f"expected {message}"


def test_labels_are_counted_and_checked_to_the_last_piece(path, monkeypatch):
    monkeypatch.setattr(generated, "CHUNK", 70)
    assert opened(path).class_counts.tolist() == [60] * 5
    np.savez(path, **generated_arrays() | {"label": np.arange(M) // (M - 1) * 5})
    assert error_of(path) == "expected `label` of 0 to 4, got 5"


def test_arrays_in_fortrans_order_are_an_error_with_the_way_out(tmp_path):
    np.savez(tmp_path / "a.npz", **generated_arrays() | {"image": np.asfortranarray(generated_arrays()["image"])})
    expected = "expected `image` in C's order, got Fortran's; save numpy.ascontiguousarray(image)"
    assert error_of(tmp_path / "a.npz") == expected


def test_pixels_above_the_originals_are_an_error(tmp_path):
    arrays = generated_arrays()
    arrays["image"][:] = 17
    np.savez(tmp_path / "a.npz", **arrays)
    expected = "expected pixels up to 16 in `image`, as the originals', got 17"
    assert error_of(tmp_path / "a.npz", maximum=16) == expected


# --- data sets and runs ---------------------------------------------------------------------------------------


def digits_file(folder, change=0):
    digits = build_data(DataOptions(split_seed=9)).train
    images = digits.images.permute(0, 2, 3, 1).numpy().copy()
    images[0, 0, 0, 0] ^= change
    np.savez(folder / f"digits{change}.npz", image=images, label=digits.labels.numpy())
    return str(folder / f"digits{change}.npz")


def test_counts_and_fingerprint_of_a_data_set_hold_the_generated_images(tmp_path):
    plain = build_data(DataOptions())
    data = build_data(DataOptions(generated=digits_file(tmp_path)))
    assert isinstance(data.train, MixedSource)
    assert len(data.train) == len(plain.train)
    assert torch.equal(data.class_counts, plain.class_counts + data.train.generated.class_counts)
    assert data.class_counts.sum() == len(plain.train) + len(data.train.generated)
    assert len(data.fingerprint) == len(plain.fingerprint) == 64
    again = build_data(DataOptions(generated=digits_file(tmp_path))).fingerprint
    other = build_data(DataOptions(generated=digits_file(tmp_path, change=1))).fingerprint
    assert data.fingerprint == again
    assert len({data.fingerprint, plain.fingerprint, other}) == 3


def test_a_change_between_the_sampled_images_shows_in_the_checksum(tmp_path):
    found = []
    for value in (0, 1):
        arrays = generated_arrays(count=2000)
        arrays["image"][1234, 2, 2, 2] = value
        np.savez(tmp_path / "a.npz", **arrays)
        found.append(opened(tmp_path / "a.npz").fingerprint)
    assert found[0] != found[1]


def test_a_source_moves_with_its_generated_images(path):
    source = mixed(path)
    moved = source.to(torch.device("cpu"))
    assert isinstance(moved, MixedSource)
    assert isinstance(moved, Source)
    assert torch.equal(batches(moved)[0].images, batches(source)[0].images)


class Stopped(Exception):
    """The machine was switched off."""


@pytest.mark.parametrize("step", [3, 7])
def test_a_run_with_generated_images_resumes_as_if_unbroken(step, tmp_path):
    data = {"generated": digits_file(tmp_path), "generated_fraction": 0.5, "augment": {"crop_padding": 1}}
    options = recipe(data=data, save={"every_steps": 1})
    fit(options, tmp_path / "whole")

    def stop(at):
        if at == step:
            raise Stopped

    with pytest.raises(Stopped):
        fit(options, tmp_path / "broken", reporter=Hook(stop))
    fit(options, tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


def test_a_run_resumes_with_its_file_in_another_place_but_not_with_another_file(tmp_path):
    first, moved = digits_file(tmp_path), tmp_path / "moved.npz"
    options = recipe(data={"generated": first}, save={"every_steps": 1})

    def stop(at):
        if at == 3:
            raise Stopped

    with pytest.raises(Stopped):
        fit(options, tmp_path / "run", reporter=Hook(stop))
    other = recipe(data={"generated": digits_file(tmp_path, change=1)})
    with pytest.raises(UserError, match="was written with other data than now"):
        fit(other, tmp_path / "run", resume=True)
    Path(first).rename(moved)
    assert fit(recipe(data={"generated": str(moved)}), tmp_path / "run", resume=True)["last"]["epoch"] == 2


def test_a_teacher_is_asked_about_generated_images(tmp_path):
    """Its logits on the original images alone are not enough."""
    fit(recipe(train={"epochs": 1}), tmp_path / "teacher")
    data = {"generated": digits_file(tmp_path), "augment": {"crop_padding": 0, "mixup": 0}}
    results = fit(student_recipe(tmp_path / "teacher", data=data), tmp_path / "student")
    assert results["last"]["epoch"] == 2


def test_full_batches_leave_none_of_one_sample(tmp_path):
    """100 images in batches of 11 would leave one; with generated ones every batch is full."""
    data = {"generated": digits_file(tmp_path)}
    with pytest.raises(UserError, match="leaves a batch of one"):
        fit(recipe(train={"batch_size": 11}), tmp_path / "plain")
    fit(recipe(train={"batch_size": 11, "epochs": 1}, data=data), tmp_path / "generated")
