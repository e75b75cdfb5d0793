"""The published data sets: URLs, file sizes, checksums, image shapes, classes and licences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from mlpconv.text import shell_path

__all__ = ["CATALOG", "Published", "PublishedFile", "is_published", "shell_data"]


@dataclass(frozen=True)
class PublishedFile:
    """A published file: name, URL, size in bytes and checksum (SHA-256, or MD5 if the publisher gives no other)."""

    name: str
    url: str
    bytes: int
    sha256: str | None = None
    md5: str | None = None
    optional: bool = False  # downloaded only with --extra


@dataclass(frozen=True)
class Published:
    """A published data set: its files, their usual location and their contents."""

    name: str
    title: str
    classes: tuple[str, ...]
    channels: int
    size: int  # height and width in pixels
    counts: MappingProxyType[str, int]  # images per split
    licence: str
    home: str
    folder: str  # the folder inside the official archive, or the usual folder
    files: tuple[PublishedFile, ...] = ()

    @property
    def images(self) -> int:
        """The number of images in all splits."""
        return sum(self.counts.values())

    @property
    def archive(self) -> str | None:
        """The name of the official archive, or None."""
        return next((file.name for file in self.files if file.name.endswith(".tar.gz")), None)


def _counts(train: int, test: int) -> MappingProxyType[str, int]:
    return MappingProxyType({"train": train, "test": test})


DIGITS = tuple("0123456789")

_OPTICAL_DIGITS = Published(
    name="digits",
    title="Optical recognition of handwritten digits (inside this package)",
    classes=DIGITS,
    channels=1,
    size=8,
    counts=_counts(1438, 359),
    licence="CC BY 4.0",
    home="https://archive.ics.uci.edu/dataset/80",
    folder="",
)

_MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_MNIST = Published(
    name="mnist",
    title="MNIST handwritten digits",
    classes=DIGITS,
    channels=1,
    size=28,
    counts=_counts(60_000, 10_000),
    licence="CC BY-SA 3.0",
    home="http://yann.lecun.com/exdb/mnist/",
    folder="MNIST/raw",
    files=(
        PublishedFile(
            "train-images-idx3-ubyte.gz",
            _MNIST_URL + "train-images-idx3-ubyte.gz",
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        PublishedFile(
            "train-labels-idx1-ubyte.gz",
            _MNIST_URL + "train-labels-idx1-ubyte.gz",
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        PublishedFile(
            "t10k-images-idx3-ubyte.gz",
            _MNIST_URL + "t10k-images-idx3-ubyte.gz",
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        PublishedFile(
            "t10k-labels-idx1-ubyte.gz",
            _MNIST_URL + "t10k-labels-idx1-ubyte.gz",
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
)

_FASHION_URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
_FASHION_MNIST = Published(
    name="fashion_mnist",
    title="Fashion-MNIST articles of clothing",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    channels=1,
    size=28,
    counts=_counts(60_000, 10_000),
    licence="MIT",
    home="https://github.com/zalandoresearch/fashion-mnist",
    folder="FashionMNIST/raw",
    # The publisher gives only MD5 sums: they detect damage, not forgery.
    files=(
        PublishedFile(
            "train-images-idx3-ubyte.gz",
            _FASHION_URL + "train-images-idx3-ubyte.gz",
            26_421_880,
            md5="8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        ),
        PublishedFile(
            "train-labels-idx1-ubyte.gz",
            _FASHION_URL + "train-labels-idx1-ubyte.gz",
            29_515,
            md5="25c81989df183df01b3e8a0aad5dffbe",
        ),
        PublishedFile(
            "t10k-images-idx3-ubyte.gz",
            _FASHION_URL + "t10k-images-idx3-ubyte.gz",
            4_422_102,
            md5="bef4ecab320f06d8554ea6380940ec79",
        ),
        PublishedFile(
            "t10k-labels-idx1-ubyte.gz",
            _FASHION_URL + "t10k-labels-idx1-ubyte.gz",
            5_148,
            md5="bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
)

_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
_CIFAR_LICENCE = "not stated"
_CIFAR10 = Published(
    name="cifar10",
    title="CIFAR-10 tiny colour photographs",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    channels=3,
    size=32,
    counts=_counts(50_000, 10_000),
    licence=_CIFAR_LICENCE,
    home="https://www.cs.toronto.edu/~kriz/cifar.html",
    folder="cifar-10-batches-bin",
    files=(
        PublishedFile(
            "cifar-10-binary.tar.gz",
            _CIFAR_URL + "cifar-10-binary.tar.gz",
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
)

_CIFAR100 = Published(
    name="cifar100",
    title="CIFAR-100 tiny colour photographs",
    classes=tuple(
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
        castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
        elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
        man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
        pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
        tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
    ),
    channels=3,
    size=32,
    counts=_counts(50_000, 10_000),
    licence=_CIFAR_LICENCE,
    home="https://www.cs.toronto.edu/~kriz/cifar.html",
    folder="cifar-100-binary",
    files=(
        PublishedFile(
            "cifar-100-binary.tar.gz",
            _CIFAR_URL + "cifar-100-binary.tar.gz",
            168_513_733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
    ),
)

# The publisher serves these only over http, so their SHA-256 is what proves them authentic.
_SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"
_SVHN = Published(
    name="svhn",
    title="Street view house numbers, cropped digits",
    classes=DIGITS,
    channels=3,
    size=32,
    counts=MappingProxyType({"train": 73_257, "test": 26_032, "extra": 531_131}),
    licence="non-commercial use",
    home=_SVHN_URL,
    folder="svhn",
    files=(
        PublishedFile(
            "train_32x32.mat",
            _SVHN_URL + "train_32x32.mat",
            182_040_794,
            "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        ),
        PublishedFile(
            "test_32x32.mat",
            _SVHN_URL + "test_32x32.mat",
            64_275_384,
            "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        ),
        PublishedFile(
            "extra_32x32.mat",
            _SVHN_URL + "extra_32x32.mat",
            1_329_278_602,
            "a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3",
            optional=True,
        ),
    ),
)

CATALOG = MappingProxyType(
    {entry.name: entry for entry in (_OPTICAL_DIGITS, _MNIST, _FASHION_MNIST, _CIFAR10, _CIFAR100, _SVHN)}
)


def is_published(data: object) -> bool:
    """Return whether data is the name of a published data set; a Path is always a file or folder."""
    return isinstance(data, str) and data in CATALOG


def shell_data(data: str | Path) -> str:
    """Quote data for a shell; a folder (a Path) with the name of a published data set is written ./NAME."""
    return shell_path(f"./{data}" if isinstance(data, Path) and str(data) in CATALOG else data)
