import gzip
import shutil
import socket

import numpy as np
import pytest
import torchvision

import common.data
from common.data import CLASSES, load, split
from common.errors import UserError
from conftest import make_tiny, write_idx

NAMES = list(common.data.DIGESTS)
FROM_DEBIAN = common.data._from_debian
FROM_TORCHVISION = common.data._from_torchvision


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No data set in data/ or on the system, and no network."""
    monkeypatch.setattr(common.data, "DATA_DIR", tmp_path / "data")
    monkeypatch.setattr(common.data, "SYSTEM_DIR", tmp_path / "system")

    def offline(scratch):
        raise RuntimeError("no route to host")

    for source in ("torchvision", "debian"):
        monkeypatch.setattr(common.data, f"_from_{source}", offline)
    return tmp_path


def test_reads_what_was_written(tiny_data):
    arrays = load(tiny_data)
    assert arrays.train_images.shape == (260, 28, 28) and arrays.train_images.dtype == np.uint8
    assert arrays.test_labels.tolist() == [i % 10 for i in range(60)]
    assert (arrays.train_images[13, 10:13] == 255).all()  # image 13 is of class 3


def test_uncompressed_files_and_torchvisions_layout(tiny_data, tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in NAMES:
        (raw / name).write_bytes(gzip.decompress((tiny_data / f"{name}.gz").read_bytes()))
    assert load(tmp_path).source == raw


def damaged(path, change):
    content = bytearray(gzip.decompress(path.read_bytes()))
    change(content)
    path.write_bytes(gzip.compress(bytes(content), 1))


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_bit_is_named(tiny_data, tmp_path, name):
    folder = shutil.copytree(tiny_data, tmp_path / "copy")
    damaged(folder / f"{name}.gz", lambda content: content.__setitem__(-1, content[-1] ^ 1))
    with pytest.raises(UserError, match=rf"{name}\.gz is damaged.*{common.data.DIGESTS[name]}"):
        load(folder)


def test_truncated_swapped_and_wrongly_labelled_files_are_named(tiny_data, tmp_path):
    folder = shutil.copytree(tiny_data, tmp_path / "copy")
    images = folder / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        images.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="train-images-idx3-ubyte.gz is damaged"):
            load(folder)
    shutil.copy(folder / "t10k-images-idx3-ubyte.gz", images)
    with pytest.raises(UserError, match="its content is that of t10k-images-idx3-ubyte"):
        load(folder)
    images.write_bytes(whole)
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.zeros(60, np.uint8))
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte.gz is damaged, or of another data"):
        load(folder)


def test_nowhere_to_be_had(nowhere):
    with pytest.raises(UserError, match="not.*; .*; .*--data-dir") as failure:
        load()
    assert NAMES[0] in str(failure.value) and common.data.DIGESTS[NAMES[0]] in str(failure.value)
    assert "\n" not in str(failure.value)
    assert not any(p.name.startswith(".fetch") for p in (nowhere / "data").iterdir())
    with pytest.raises(UserError, match="python -m common.data"):
        load(fetch=False)
    with pytest.raises(UserError, match="--data-dir"):
        load(nowhere / "no-such-folder")


def test_search_order(tiny_data, nowhere):
    make_tiny(nowhere / "system")
    assert load().source == nowhere / "system"
    make_tiny(nowhere / "data")
    assert load().source == nowhere / "data"
    assert load(tiny_data).source == tiny_data


def test_a_damaged_download_is_not_kept(tiny_data, nowhere, monkeypatch):
    def source(scratch):
        raw = shutil.copytree(tiny_data, scratch / "raw")
        (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"<html>log in first</html>")
        return raw

    place = nowhere / "data" / "fashion-mnist"
    for name in ("_from_torchvision", "_from_debian"):
        monkeypatch.setattr(common.data, name, source)
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte.gz is damaged"):
        load()
    assert not place.exists()
    (place / "of-the-users-own").mkdir(parents=True)
    monkeypatch.setattr(common.data, "_from_debian", lambda _: shutil.copytree(tiny_data, _ / "x"))
    assert load().source == place  # from the second, where the first is damaged
    assert (place / "of-the-users-own").exists()


def test_torchvision_is_asked_first_and_not_for_longer_than_a_timeout(
    tiny_data, nowhere, monkeypatch
):
    timeouts = []

    def download(root, download):
        timeouts.append(socket.getdefaulttimeout())
        shutil.copytree(tiny_data, root / "FashionMNIST" / "raw")

    before = socket.getdefaulttimeout()
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    monkeypatch.setattr(common.data, "_from_torchvision", FROM_TORCHVISION)
    monkeypatch.setattr(common.data, "_from_debian", lambda _: pytest.fail("it is the second"))
    assert load().source == nowhere / "data" / "fashion-mnist"
    assert timeouts == [30] and socket.getdefaulttimeout() == before


def test_debians_package_is_unpacked_with_package_lists_of_its_own(
    tiny_data, nowhere, monkeypatch, tmp_path
):
    """On a machine without lists the first download fails. The programs are stand-ins."""
    (programs := tmp_path / "programs").mkdir()
    place = common.data.SYSTEM_DIR.relative_to("/")
    scripts = {
        "apt-get": """
            case "$*" in
            *update) case "$*" in *Dir::State::Lists=*/apt*) touch apt/there;; esac;;
            *Dir::State::Lists=*/apt*download*) test -f apt/there && touch "$PKG"_1_all.deb;;
            *) echo "E: Unable to locate package" >&2; exit 100;;
            esac""",
        "dpkg-deb": f"""
            test -f "$2" && mkdir -p "$(dirname "$3/{place}")" && cp -r "{tiny_data}" "$3/{place}"
            """,
    }
    for name, lines in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\nPKG={common.data.PACKAGE}\n{lines}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setattr(common.data, "_from_debian", FROM_DEBIAN)
    assert load().source == nowhere / "data" / "fashion-mnist"
    (programs / "dpkg-deb").write_text("#!/bin/sh\necho no space left >&2; exit 2")
    shutil.rmtree(nowhere / "data")
    with pytest.raises(UserError, match="no route to host, debian: no space left; put "):
        load()


def test_split_is_stratified_disjoint_and_complete():
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10, dtype=np.uint8), 600))
    train, held_out = split(labels)
    assert sorted([*train, *held_out]) == list(range(6000))
    assert np.bincount(labels[held_out]).tolist() == [50] * 10
    for label in range(10):  # the last of each class, whatever the seed
        assert (
            held_out[labels[held_out] == label].tolist()
            == np.flatnonzero(labels == label)[-50:].tolist()
        )


def test_the_real_data_set():
    arrays = load()  # `make test` has fetched it
    assert arrays.train_images.shape == (60_000, 28, 28)
    assert arrays.test_images.shape == (10_000, 28, 28)
    assert np.bincount(arrays.train_labels).tolist() == [6000] * 10 and len(CLASSES) == 10
    train, held_out = split(arrays.train_labels)
    assert len(train) == 55_000 and len(held_out) == 5_000
    assert np.bincount(arrays.train_labels[held_out]).tolist() == [500] * 10


def test_its_command_takes_no_arguments():
    with pytest.raises(UserError, match=r"--nope; see `python -m common\.data --help`"):
        common.data.main(["--nope"])
