import pytest
from helpers.numbered import SIZE, TRAINING_IMAGES, numbered_images, write_images

from tfdecouple.config import DataConfig
from tfdecouple.data.sources import open_source
from tfdecouple.data.splits import MemorySplit, RecordSplit


@pytest.fixture(scope="session")
def tiny_tfds(tmp_path_factory):
    """The data_dir of a prepared TFDS data set `tiny_numbers` with 30 training and 5 test images."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyNumbers(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(SIZE, SIZE, 3)), "comment": tfds.features.Text()}
            features["label"] = tfds.features.ClassLabel(names=["even", "odd"])
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(30), "test": self._generate_examples(5)}

        def _generate_examples(self, count):
            for number, image in enumerate(numbered_images(count)):
                yield number, {"image": image, "label": number % 2, "comment": "any"}

    data_dir = tmp_path_factory.mktemp("tfds")
    TinyNumbers(data_dir=data_dir).download_and_prepare()
    return str(data_dir)


@pytest.fixture(scope="session")
def numbered_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    images = numbered_images(TRAINING_IMAGES)
    write_images(folder / "train" / "low", images[:13])
    write_images(folder / "train" / "high", images[13:], first=13)
    write_images(folder / "val", numbered_images(3))
    write_images(folder / "test", numbered_images(4))
    return folder


@pytest.fixture(scope="session", params=["memory", "files", "records"])
def source(request):
    """A source with `TRAINING_IMAGES` training images, held in memory, in files or in TFDS records."""
    if request.param == "records":
        options = {"data_dir": request.getfixturevalue("tiny_tfds"), "validation_examples": 4, "cache_gib": 0}
        opened = open_source(DataConfig(source="tfds:tiny_numbers", **options), (SIZE, SIZE, 3))
        assert isinstance(opened.splits["train"], RecordSplit)
    else:
        folder = request.getfixturevalue("numbered_folder")
        cache_gib = 1.0 if request.param == "memory" else 0.0
        opened = open_source(DataConfig(source=f"folder:{folder}", cache_gib=cache_gib), (SIZE, SIZE, 3))
        assert isinstance(opened.splits["train"], MemorySplit) == (request.param == "memory")
    assert opened.sizes["train"] == TRAINING_IMAGES
    return opened
