"""CIFAR from every published form, bit for bit; what is damaged, missing or hostile is one line and runs nothing."""

from __future__ import annotations

import errno
import gzip
import io
import pickle
import tarfile
import tracemalloc

import pytest
import torch
from cifar_archives import (
    ARCHIVES,
    FOLDERS,
    FORMS,
    batch,
    binary_files,
    make_cifar,
    python2_pickle,
    python_files,
    write_cifar,
    write_tar,
)

from limbeck.config import DataOptions
from limbeck.data import build_data, cifar
from limbeck.data.pickles import Refused, load_dictionary
from limbeck.data.sources import normalise
from limbeck.data.splits import split
from limbeck.data_files import data_folder
from limbeck.errors import UserError

NAMES = ("cifar10", "cifar100")


def same(read, written):
    return all(torch.equal(ours, theirs) for ours, theirs in zip(read, written, strict=True))


def refusal(name, folder):
    """Return the line that reading ends with."""
    with pytest.raises(UserError) as caught:
        cifar.load(name, folder)
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- what is read ---


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_every_published_form_gives_the_images_and_labels_that_were_written(tmp_path, name, form):
    written = write_cifar(tmp_path, name, train=203, test=101, form=form)
    read = cifar.load(name, tmp_path)
    assert same(read, written)
    assert [tensor.dtype for tensor in read] == [torch.uint8, torch.int64] * 2
    assert all(tensor.is_contiguous() for tensor in read)


def test_the_first_third_of_a_record_is_red_row_by_row(tmp_path):
    data = make_cifar("cifar10", train=10, test=5)
    pixels = bytes(range(256)) * 12
    test = python2_pickle({"labels": [3], "data": torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(1, -1)})
    write_tar(
        tmp_path / "cifar-10-python.tar.gz",
        {
            f"cifar-10-batches-py/{key}": content
            for key, content in (python_files("cifar10", data) | {"test_batch": test}).items()
        },
    )
    image = cifar.load("cifar10", tmp_path).test_images[0]
    for channel, row, column in ((0, 0, 1), (0, 5, 7), (1, 0, 3), (2, 31, 31)):
        assert image[channel, row, column] == pixels[1024 * channel + 32 * row + column]


def test_fine_labels_are_read_not_the_coarse_ones(tmp_path):
    for form in ("tar", "binary"):
        written = write_cifar(tmp_path / form, "cifar100", form=form)
        assert cifar.load("cifar100", tmp_path / form).train_labels.tolist() == written.train_labels.tolist()
        assert int(written.train_labels.max()) == 99


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_batches_that_python_3_pickled_again_are_read_too(tmp_path, protocol):
    data = write_cifar(tmp_path, "cifar100", form="folder")
    for part, images, labels in (("train", *data[:2]), ("test", *data[2:])):
        content = batch("cifar100", images, labels)
        content["data"] = content["data"].numpy()
        (tmp_path / "cifar-100-python" / part).write_bytes(pickle.dumps(content, protocol=protocol))
    assert same(cifar.load("cifar100", tmp_path), data)


@pytest.mark.parametrize("name", NAMES)
def test_the_extracted_folder_itself_is_a_data_folder_whatever_its_name(tmp_path, name):
    for form in ("folder", "binary"):
        written = write_cifar(tmp_path, name, form=form)
        inner = tmp_path / FOLDERS[name, FORMS[form][0]]
        assert same(cifar.load(name, inner), written)
        assert same(cifar.load(name, inner.rename(tmp_path / f"images-{form}")), written)


def test_members_packed_with_a_leading_dot_are_read(tmp_path):
    data = make_cifar("cifar100", train=100, test=100)
    files = {f"./cifar-100-python/{key}": content for key, content in python_files("cifar100", data).items()}
    write_tar(tmp_path / "cifar-100-python.tar.gz", files)
    assert same(cifar.load("cifar100", tmp_path), data)


def test_a_data_set_is_read_once_in_a_process(tmp_path):
    write_cifar(tmp_path, "cifar10")
    first = cifar.load("cifar10", tmp_path)
    assert cifar.load("cifar10", tmp_path / ".." / tmp_path.name) is first


def test_published_constants_normalise_to_mean_0_and_standard_deviation_1():
    for name in NAMES:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in cifar.PIXELS[name][1:3])
        images = torch.cat([mean - std, mean + std]).mul(255).round().to(torch.uint8).expand(2, 3, 32, 32)
        assert torch.allclose(normalise(images, cifar.PIXELS[name]).mean((0, 2, 3)), torch.zeros(3), atol=0.02)
        assert torch.allclose(normalise(images, cifar.PIXELS[name])[1], torch.ones(3, 32, 32), atol=0.02)


def test_pixels_are_normalised_by_the_constants_of_the_distillation_literature():
    assert cifar.PIXELS["cifar10"][1:3] == ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    assert cifar.PIXELS["cifar100"][1:3] == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


# --- the data folder ---


def test_the_data_folder_is_the_option_else_the_variable_else_data(monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", "/archives")
    assert [str(data_folder(option)) for option in ("mine", None)] == ["mine", "/archives"]
    monkeypatch.delenv("LIMBECK_DATA")
    assert str(data_folder(None)) == "data"


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(data_folder("~/data")) == "/home/someone/data"


# --- what is not there ---


def test_a_data_folder_that_does_not_exist_names_the_command_that_fills_it(tmp_path):
    line = refusal("cifar100", tmp_path / "data")
    assert f"the data folder {tmp_path / 'data'} of CIFAR-100 does not exist" in line
    assert line.endswith(f"limbeck data fetch cifar100 --folder {tmp_path / 'data'} (downloads 169.0 MB)")


def test_an_empty_data_folder_says_what_belongs_there(tmp_path):
    line = refusal("cifar10", tmp_path)
    assert (
        f"{tmp_path} holds no CIFAR-10: expected cifar-10-python.tar.gz or cifar-10-batches-py/; get it: limbeck"
        in line
    )


def test_the_other_data_set_is_named_where_only_that_is_there(tmp_path):
    write_cifar(tmp_path, "cifar10")
    assert "cifar-100-python/ (it holds what `data.name: cifar10` reads)" in refusal("cifar100", tmp_path)


def test_the_archive_in_the_place_of_its_folder_is_told(tmp_path):
    write_cifar(tmp_path, "cifar100")
    archive = tmp_path / "cifar-100-python.tar.gz"
    assert refusal("cifar100", archive) == (
        f"`data.folder` expected the folder that holds cifar-100-python.tar.gz, got the file {archive}"
    )


def test_a_download_that_was_not_finished_is_told(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz.part").write_bytes(b"half")
    assert "holds only a part of cifar-100-python.tar.gz; to go on: limbeck data fetch" in refusal("cifar100", tmp_path)


@pytest.mark.parametrize(("form", "gone"), [("folder", "data_batch_3"), ("binary", "test_batch.bin")])
def test_a_missing_batch_is_named(tmp_path, form, gone):
    write_cifar(tmp_path, "cifar10", form=form)
    folder = tmp_path / FOLDERS["cifar10", FORMS[form][0]]
    (folder / gone).unlink()
    assert refusal("cifar10", tmp_path) == f"{folder} lacks `{gone}` of CIFAR-10; extract its archive again"


def test_an_extracted_folder_that_is_named_itself_and_lacks_a_batch_is_told(tmp_path):
    write_cifar(tmp_path, "cifar10", form="folder")
    folder = tmp_path / "cifar-10-batches-py"
    (folder / "data_batch_1").unlink()
    assert refusal("cifar10", folder) == f"{folder} lacks `data_batch_1` of CIFAR-10; extract its archive again"


def test_an_archive_under_the_name_of_the_other_lacks_everything(tmp_path):
    write_cifar(tmp_path, "cifar10")
    archive = (tmp_path / ARCHIVES["cifar10", "python"]).rename(tmp_path / ARCHIVES["cifar100", "python"])
    way_out = f"delete {archive} and run: limbeck data fetch cifar100 --folder {tmp_path}"
    assert refusal("cifar100", tmp_path) == f"{archive} lacks `train`, `test` of CIFAR-100; {way_out}"


# --- what is damaged ---


@pytest.mark.parametrize("form", ["tar", "binary-tar"])
@pytest.mark.parametrize("kept", [0, 100, 0.5, -4000, -5])
def test_an_archive_that_is_cut_off_anywhere_is_told(tmp_path, form, kept):
    write_cifar(tmp_path, "cifar100", form=form)
    archive = tmp_path / ARCHIVES["cifar100", FORMS[form][0]]
    content = archive.read_bytes()
    archive.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    line = refusal("cifar100", tmp_path)
    assert f"{archive}" in line
    assert "is damaged or cut off (" in line
    assert line.endswith(f"delete {archive} and run: limbeck data fetch cifar100 --folder {tmp_path}")


def test_one_flipped_bit_of_a_pixel_in_an_archive_is_told(tmp_path):
    data = make_cifar("cifar10", train=50, test=50)
    archive = tmp_path / "cifar-10-python.tar.gz"
    with gzip.open(archive, "wb", compresslevel=0) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for key, content in python_files("cifar10", data).items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{key}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    content = bytearray(archive.read_bytes())
    content[content.index(data.test_images[0].numpy().tobytes()[:64]) + 5] ^= 1
    archive.write_bytes(content)
    assert "is damaged or cut off (CRC check failed" in refusal("cifar10", tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 50, 40_000])
def test_a_pickle_that_is_cut_off_is_told(tmp_path, kept):
    write_cifar(tmp_path, "cifar10", form="folder")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:kept])
    line = refusal("cifar10", tmp_path)
    assert line.startswith(f"{path} is damaged or cut off (")
    assert line.endswith("; extract its archive again")


def test_a_binary_file_that_is_cut_off_is_told(tmp_path):
    write_cifar(tmp_path, "cifar100", train=100, form="binary")
    path = tmp_path / "cifar-100-binary" / "train.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal("cifar100", tmp_path).startswith(f"{path}: expected records of 3074 bytes, got 307399 bytes; ")


def test_a_file_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    write_cifar(tmp_path, "cifar10")
    path = tmp_path / "cifar-10-python.tar.gz"

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(cifar, "_Unpacked", refuse)
    assert refusal("cifar10", tmp_path) == f"{path} cannot be read (permission denied)"


def test_a_folder_in_the_place_of_a_batch_is_a_missing_batch(tmp_path):
    write_cifar(tmp_path, "cifar100", form="folder")
    (tmp_path / "cifar-100-python" / "test").unlink()
    (tmp_path / "cifar-100-python" / "test").mkdir()
    assert "lacks `test` of CIFAR-100" in refusal("cifar100", tmp_path)


# --- what is not these images ---

PIXELS = torch.zeros(2, 3072, dtype=torch.uint8)
WRONG = {
    "other keys": ({"labels": [0, 1], "data": PIXELS}, "expected `data` and `fine_labels`, got `data`, `labels`"),
    "columns": ({"fine_labels": [0, 1], "data": PIXELS[:, :784]}, "shape (N, 3072), got u1 (2, 784)"),
    "no images": ({"fine_labels": [], "data": PIXELS[:0]}, "shape (N, 3072), got u1 (0, 3072)"),
    "no array": ({"fine_labels": [0], "data": "pixels"}, "expected `data` to be an array, got bytes"),
    "few labels": ({"fine_labels": [0], "data": PIXELS}, "expected a label for each image, got 2 images and 1 labels"),
    "label 100": ({"fine_labels": [0, 100], "data": PIXELS}, "expected labels from 0 to 99, got 100"),
    "label -1": ({"fine_labels": [-1, 0], "data": PIXELS}, "expected labels from 0 to 99, got -1"),
    "words": ({"fine_labels": ["cat", "dog"], "data": PIXELS}, "expected `fine_labels` to be a list of integers"),
    "a list": ([1, 2], "is damaged or cut off (expected a dictionary, got list)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_batch_of_something_else_says_what_was_expected_and_what_it_is(tmp_path, case):
    content, expected = WRONG[case]
    write_cifar(tmp_path, "cifar100", form="folder")
    path = tmp_path / "cifar-100-python" / "train"
    path.write_bytes(python2_pickle(content))
    line = refusal("cifar100", tmp_path)
    assert line.startswith(str(path))
    assert expected in line


def test_an_array_of_other_numbers_or_order_is_refused(tmp_path):
    write_cifar(tmp_path, "cifar100", form="folder")
    for array, seen in ((PIXELS.numpy().astype("f4"), "f4"), (PIXELS.numpy().T.copy().T, "u1")):
        content = pickle.dumps({"fine_labels": [0, 1], "data": array}, protocol=2)
        (tmp_path / "cifar-100-python" / "train").write_bytes(content)
        assert f"of one byte each and shape (N, 3072), got {seen}" in refusal("cifar100", tmp_path)


def test_a_label_out_of_range_in_a_binary_file_is_told(tmp_path):
    data = make_cifar("cifar10", train=10, test=10)
    data.train_labels[7] = 200
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for key, content in binary_files("cifar10", data).items():
        (tmp_path / "cifar-10-batches-bin" / key).write_bytes(content)
    assert "expected labels from 0 to 9, got 200" in refusal("cifar10", tmp_path)


def test_a_class_without_a_training_image_is_told(tmp_path):
    write_cifar(tmp_path, "cifar100", train=99)
    assert "expected training images of all 100 classes, got 99; delete" in refusal("cifar100", tmp_path)


# --- splits ---


def options(folder, name, **others):
    return DataOptions(name=name, folder=str(folder), **others)


def test_without_validation_all_training_images_are_trained_on_and_the_test_images_are_the_authors(tmp_path):
    written = write_cifar(tmp_path, "cifar100")
    data = build_data(options(tmp_path, "cifar100", validation=0))
    assert (data.num_classes, data.image_shape, len(data.validation)) == (100, (3, 32, 32), 0)
    assert same((data.train.images, data.train.labels, data.test.images, data.test.labels), written)
    assert data.train.pixels == data.test.pixels == cifar.PIXELS["cifar100"]


@pytest.mark.parametrize("others", [{"imbalance": 10}, {"labels_per_class": 3}, {"validation": 0.5, "split_seed": 4}])
def test_the_authors_test_images_stay_whole_whatever_is_trained_on(tmp_path, others):
    written = write_cifar(tmp_path, "cifar10")
    data = build_data(options(tmp_path, "cifar10", **others))
    assert same((data.test.images, data.test.labels), written[2:])
    assert len(data.train) + len(data.validation) <= 200


def test_validation_is_held_out_of_the_training_images(tmp_path):
    write_cifar(tmp_path, "cifar10")
    data = build_data(options(tmp_path, "cifar10", validation=0.2))
    images = [{image.numpy().tobytes() for image in part.images} for part in (data.train, data.validation)]
    assert [len(part) for part in images] == [160, 40]
    assert not images[0] & images[1]
    assert data.validation.labels.bincount().tolist() == [4] * 10


@pytest.mark.parametrize(("name", "per_class", "total"), [("cifar10", 5000, 12_406), ("cifar100", 500, 10_847)])
def test_the_long_tail_of_100_has_as_many_images_as_the_public_one(name, per_class, total):
    labels = torch.arange(50_000) % cifar.CLASSES[name]
    kept = split(labels, DataOptions(name=name, imbalance=100, validation=0)).train
    sizes = labels[kept].bincount().tolist()
    assert (sizes[0], sizes[-1], sum(sizes)) == (per_class, per_class // 100, total)


def test_the_variable_names_the_data_folder(tmp_path, monkeypatch):
    write_cifar(tmp_path, "cifar10")
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    assert len(build_data(DataOptions(name="cifar10", validation=0)).train) == 200


def test_the_form_of_the_archive_does_not_change_the_fingerprint(tmp_path):
    for form in FORMS:
        write_cifar(tmp_path / form, "cifar100", form=form)
    assert len({build_data(options(tmp_path / form, "cifar100")).fingerprint for form in FORMS}) == 1


# --- what is hostile ---


def hostile(target):
    """Return pickles that would write the file `target`, each by another way into Python."""
    command = f"echo hacked > {target}"
    code = f"open({str(target)!r}, 'w')"
    arguments = f"(S{command!r}\ntR.".encode()
    return {
        "os": b"cos\nsystem\n" + arguments,
        "posix": b"cposix\nsystem\n" + arguments,
        "python 2": f"c__builtin__\neval\n(S{code!r}\ntR.".encode(),
        "python 3": f"cbuiltins\nexec\n(S{code!r}\ntR.".encode(),
        "inst": f"(S{command!r}\nios\nsystem\n.".encode(),
        "obj": f"(cos\nsystem\nS{command!r}\no.".encode(),
        "stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + arguments,
        "numpy": b"cnumpy\nload\n" + f"(S{str(target)!r}\ntR.".encode(),
        "ndarray's method": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93" + f"(S{str(target)!r}\ntR.".encode(),
        "getattr": b"cbuiltins\ngetattr\n(cnumpy\ndtype\nS'__init__'\ntR.",
        "registry": b"ccopyreg\n__newobj__\n(cnumpy\nndarray\ntR.",
        "codec": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.",
    }


@pytest.mark.parametrize("way", hostile("x"))
def test_a_pickle_that_asks_for_code_is_refused_and_nothing_is_run(tmp_path, way):
    target = tmp_path / "written"
    write_cifar(tmp_path, "cifar10", form="folder")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_4"
    path.write_bytes(hostile(target)[way])
    line = refusal("cifar10", tmp_path)
    assert not target.exists()
    assert line.startswith(f"{path} asks for ")
    way_out = f"delete {path.parent} and run: limbeck data fetch cifar10 --folder {tmp_path}"
    assert line.endswith(f"refused, and nothing was run; {way_out}")


def test_a_refused_file_that_lies_in_the_data_folder_does_not_cost_the_folder(tmp_path):
    write_cifar(tmp_path, "cifar10", form="folder")
    folder = (tmp_path / "cifar-10-batches-py").rename(tmp_path / "data")
    (folder / "data_batch_4").write_bytes(hostile(tmp_path / "written")["os"])
    way_out = f"delete {folder / 'data_batch_4'} and run: limbeck data fetch cifar10 --folder {folder}"
    assert refusal("cifar10", folder).endswith(way_out)


@pytest.mark.parametrize("way", ["os", "python 3", "inst", "obj", "stack"])
def test_those_pickles_do_write_the_file_when_they_are_run(tmp_path, way):
    target = tmp_path / "written"
    pickle.loads(hostile(target)[way])
    assert target.exists()


def test_a_persistent_id_is_refused():
    with pytest.raises(pickle.UnpicklingError, match="persistent"):
        load_dictionary(io.BytesIO(b"Psomething\n."))


def test_a_refusal_names_what_was_asked_for():
    with pytest.raises(Refused, match=r"`posix\.system`"):
        load_dictionary(io.BytesIO(b"cposix\nsystem\n."))


def peak_of(function):
    """Return what raised, in words, and the most bytes of Python's own that were alive at once."""
    tracemalloc.start()
    try:
        with pytest.raises((UserError, pickle.UnpicklingError, EOFError)) as caught:
            function()
        return str(caught.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_pickle_of_ten_bytes_gets_no_more_memory_than_it_needs():
    memo = b"}r" + (1 << 26).to_bytes(4, "little")  # in C, room for 2^27 memos: a gigabyte
    assert peak_of(lambda: load_dictionary(io.BytesIO(memo)))[1] < 1 << 20
    assert load_dictionary(io.BytesIO(memo + b".")) == {}


@pytest.mark.parametrize("where", ["batch", "another file", "header"])
def test_an_archive_that_is_larger_unpacked_than_it_can_be_is_refused(tmp_path, monkeypatch, where):
    monkeypatch.setattr(cifar, "LARGEST", 1 << 22)
    path = tmp_path / "cifar-100-binary.tar.gz"
    write_tar(path, {f"cifar-100-binary/{'train.bin' if where == 'batch' else 'x'}": bytes(1 << 25)})
    if where == "header":  # a name that goes on for as long
        with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as tar:
            tar.addfile(tarfile.TarInfo("x" * (1 << 25)))
    words, peak = peak_of(lambda: cifar.load("cifar100", tmp_path))
    assert f"expected at most {1 << 22:,} bytes" in words
    assert peak < 1 << 24


@pytest.mark.parametrize("prefix", ["../", "/tmp/", "x/../", "cifar-100-python/../"])
def test_members_of_any_other_path_are_not_read_and_nothing_is_extracted(tmp_path, prefix):
    folder = tmp_path / "data"
    files = python_files("cifar100", make_cifar("cifar100", train=10, test=10))
    folder.mkdir()
    write_tar(
        folder / "cifar-100-python.tar.gz",
        {f"{prefix}cifar-100-python/{key}": content for key, content in files.items()},
    )
    assert "lacks `train`, `test`" in refusal("cifar100", folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "cifar-100-python.tar.gz"]


def test_a_link_in_the_place_of_a_batch_is_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(python_files("cifar100", make_cifar("cifar100", train=10, test=10))["train"])
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as tar:
        for key, kind in (("train", tarfile.SYMTYPE), ("test", tarfile.LNKTYPE)):
            entry = tarfile.TarInfo(f"cifar-100-python/{key}")
            entry.type, entry.linkname = kind, str(secret)
            tar.addfile(entry)
    assert "lacks `train`, `test`" in refusal("cifar100", tmp_path)


def test_reading_leaves_the_data_folder_as_it_was(tmp_path):
    write_cifar(tmp_path, "cifar100")
    cifar.load("cifar100", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-100-python.tar.gz"]
