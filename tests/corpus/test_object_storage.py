"""The Beam pipeline with its images, model and codes in object storage, by servers of S3 and of Google Cloud Storage.

The servers are moto and gcp-storage-emulator. `make test-services` runs these tests.
"""

import contextlib
import pathlib

import pytest
from helpers.codes import assert_same_codes, read_codes_by_key
from helpers.models import random_images, save_images
from helpers.refusals import refused

from tfdecouple.cli import main

pytestmark = pytest.mark.slow
COUNT = 9


class S3:
    """A server of the S3 protocol, with a bucket."""

    scheme = "s3"

    def __init__(self, stack, monkeypatch):
        server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer("127.0.0.1", 0)
        server.start()
        stack.callback(server.stop)
        host, port = server.get_host_and_port()
        access = {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"}
        access |= {"aws_access_key_id": "x", "aws_secret_access_key": "y"}
        self.client = pytest.importorskip("boto3").client("s3", **access)
        # All servers of a process have the same buckets.
        self.bucket = f"corpus-{port}"
        self.client.create_bucket(Bucket=self.bucket)
        options = {"endpoint_url": f"http://{host}:{port}", "access_key_id": "x", "secret_access_key": "y"}
        self.options = [f"--s3_{name}={value}" for name, value in {**options, "region_name": "us-east-1"}.items()]

    def upload(self, name, content):
        self.client.put_object(Bucket=self.bucket, Key=name, Body=content)

    def download(self):
        names = [entry["Key"] for entry in self.client.list_objects_v2(Bucket=self.bucket)["Contents"]]
        return {name: self.client.get_object(Bucket=self.bucket, Key=name)["Body"].read() for name in names}


class GoogleCloudStorage:
    """A server of Google Cloud Storage, with a bucket."""

    scheme = "gs"
    options = ("--no_auth", "--project=p")
    bucket = "corpus"

    def __init__(self, stack, monkeypatch):
        emulator = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed")
        server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=self.bucket)
        server.start()
        stack.callback(server.stop)
        address = f"http://127.0.0.1:{server._api._httpd.server_port}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        storage = pytest.importorskip("google.cloud.storage")
        credentials = pytest.importorskip("google.auth.credentials").AnonymousCredentials()
        self.client = storage.Client(project="p", credentials=credentials).bucket(self.bucket)

    def upload(self, name, content):
        self.client.blob(name).upload_from_string(content)

    def download(self):
        return {blob.name: blob.download_as_bytes() for blob in self.client.list_blobs()}


@pytest.fixture(params=[S3, GoogleCloudStorage])
def storage(request, exported, pictures, monkeypatch):
    """A server with an exported model below model/, and images below images/."""
    with contextlib.ExitStack() as stack:
        server = request.param(stack, monkeypatch)
        for place, folder in (("model", exported), ("images", pictures)):
            for file in filter(pathlib.Path.is_file, folder.rglob("*")):
                if place == "images" or file.name == "encoder.onnx":
                    server.upload(f"{place}/{file.relative_to(folder)}", file.read_bytes())
        yield server


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    names = [f"{('a', 'b')[number % 2]}/{number}.png" for number in range(COUNT)]
    return save_images(tmp_path_factory.mktemp("pictures"), dict(zip(names, random_images(COUNT), strict=True)))


@pytest.fixture
def encode(storage):
    def run(*more, images="images", runner=("--runner=DirectRunner", "--direct_running_mode=in_memory")):
        address = f"{storage.scheme}://{storage.bucket}"
        arguments = ["--model", f"{address}/model", "--images", f"{address}/{images}", "--out", f"{address}/codes"]
        arguments += ["--v", "--batch-size", "4", *more, "--", *runner, *storage.options]
        return main(["encode-beam", *arguments])

    return run


@pytest.mark.parametrize(("kind", "damaged"), [("tfrecord", 0), ("parquet", 1)])
def test_codes_in_object_storage_equal_those_of_encode(encode, storage, tiny_run, pictures, tmp_path, kind, damaged):
    if damaged:
        storage.upload("images/b/damaged.png", b"no picture")
    assert encode("--format", kind, "--shards", "2") == 0
    codes = tmp_path / "codes"
    codes.mkdir()
    for name, content in storage.download().items():
        if name.startswith("codes/"):
            (codes / name.removeprefix("codes/")).write_bytes(content)
    assert main(["encode", "--verify", "--out", str(codes)]) == 0
    assert [path.read_text()[:15] for path in codes.glob("_unreadable.txt")] == ["b/damaged.png: "] * damaged
    single = tmp_path / "single"
    assert main(["encode", "--run", str(tiny_run), "--data", f"folder:{pictures}", "--out", str(single), "--v"]) == 0
    assert_same_codes(codes, single)
    assert len(read_codes_by_key(codes)) == COUNT


def test_error_of_object_storage_is_one_line(encode, storage, capsys, monkeypatch):
    # Beam would wait for minutes between its attempts to reach a server.
    monkeypatch.setattr("apache_beam.utils.retry.Clock.sleep", lambda clock, seconds: None)
    assert "there are no images" in refused(capsys, lambda: encode(images="none"))
    storage.options = [option.replace("127.0.0.1", "127.0.0.1.invalid") for option in storage.options]
    if storage.scheme == "s3":
        assert "cannot read s3://" in refused(capsys, encode)
