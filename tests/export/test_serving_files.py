"""What an export writes for TensorFlow Serving: its configurations, and versions that are never seen half written."""

import os
import re
import shutil
import time

import grpc
import pytest
from google.protobuf import text_format
from helpers.places import PATIENCE
from helpers.serving_server import Server, read_models
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from export.formats.saved_model import write_serving_files
from export.provenance import make_safe_name


def test_models_config(exported, name):
    (model,) = read_models(exported)
    assert (model.base_path, model.model_platform) == (f"/models/{name}", "tensorflow")
    assert not model.HasField("model_version_policy")
    # What the comment tells to add must be right as well.
    (advice,) = re.findall(r"# +(model_version_policy .*)", (exported / "models.config").read_text())
    policy = text_format.Parse(advice, model_server_config_pb2.ModelConfig()).model_version_policy
    assert list(policy.specific.versions) == [1, 2]


@pytest.mark.parametrize("run_name", ["faces, 2nd try/ema", "../../etc", "Größe 3", 'a"b', "---", ""])
def test_any_run_name_makes_a_model_that_can_be_served(run_name, tmp_path):
    name = make_safe_name(run_name)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name)
    write_serving_files(tmp_path, name)
    (model,) = read_models(tmp_path)
    assert model.name == name


def test_batching_config(exported):
    text = re.sub("#.*", "", (exported / "batching.config").read_text())
    values = {name: int(value) for name, value in re.findall(r"^(\w+) \{ value: (\d+) \}$", text, re.MULTILINE)}
    sizes = [int(size) for size in re.findall(r"^allowed_batch_sizes: (\d+)$", text, re.MULTILINE)]
    # The names of the fields in TensorFlow Serving's session_bundle_config.proto.
    assert set(values) == {"max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"}
    assert sizes == sorted(set(sizes)) and sizes[0] == 1 and sizes[-1] == values["max_batch_size"]
    assert min(values.values()) >= 1 and values["batch_timeout_micros"] <= 100_000
    assert len(text.split("\n\n")) > 4 and len(values) + len(sizes) == len([line for line in text.splitlines() if line])


def test_monitoring_config(exported):
    text = re.sub("#.*", "", (exported / "monitoring.config").read_text())
    assert re.fullmatch(r'prometheus_config \{ enable: true path: "/monitoring/\S+" \}', " ".join(text.split()))


@pytest.fixture
def services(exported):
    """The services of docker-compose.yml."""
    yaml = pytest.importorskip("yaml")
    compose = yaml.safe_load((exported / "docker-compose.yml").read_text())
    assert set(compose) == {"services"} and set(compose["services"]) == {"tf-serving", "tf-serving-gpu"}
    return compose["services"]


def test_docker_compose(exported, services):
    service = services["tf-serving"]
    assert set(service) == {"image", "ports", "volumes", "command"}
    assert re.fullmatch(r"tensorflow/serving:\$\{[A-Z_]+:-[\w.-]+\}", service["image"])
    assert [port.split(":")[-2:] for port in service["ports"]] == [["8500", "8500"], ["8501", "8501"]]
    mounts = {}
    for volume in service["volumes"]:
        here, there, mode = volume.split(":")
        assert here.startswith("./") and (exported / here).exists() and mode == "ro"
        mounts[there] = exported / here
    assert mounts[read_models(exported)[0].base_path] == exported / "savedmodel"
    flags = dict(flag.removeprefix("--").split("=") for flag in service["command"])
    assert flags.pop("enable_batching") == "true"
    files = {"model_config_file": "models", "monitoring_config_file": "monitoring"}
    files["batching_parameters_file"] = "batching"
    assert {flag: mounts[path].name for flag, path in flags.items()} == {
        flag: f"{file}.config" for flag, file in files.items()
    }


def test_docker_compose_on_a_gpu_computes_in_full_float32(services):
    """By environment: the official image reads no other switch of TF32."""
    assert services["tf-serving-gpu"] == {
        "extends": {"service": "tf-serving"},
        "profiles": ["gpu"],
        "image": services["tf-serving"]["image"] + "-gpu",
        "environment": {"NVIDIA_TF32_OVERRIDE": "0"},
        "deploy": {
            "resources": {"reservations": {"devices": [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]}}
        },
    }


def wait_until(condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.02)


def states(server, name):
    """{version: state} as the model service gives them."""
    with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        reply = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request)
    state = get_model_status_pb2.ModelVersionStatus.State
    return {status.version: state.Name(status.state) for status in reply.model_version_status}


def test_a_new_version_that_is_renamed_in_is_never_seen_half_written(exported, name, tmp_path):
    base = tmp_path / "savedmodel"
    shutil.copytree(exported / "savedmodel" / "1", base / "1")
    with Server(base, name, poll_seconds=0.01) as server:
        assert states(server, name) == {1: "AVAILABLE"}
        # Slowly, so that the server looks many times while files are missing.
        shutil.copytree(base / "1", base / ".2.partial", copy_function=lambda *a: (time.sleep(0.03), shutil.copy2(*a)))
        assert states(server, name) == {1: "AVAILABLE"}
        os.rename(base / ".2.partial", base / "2")
        wait_until(lambda: server.loaded.version == 2 or server.failures)
        assert states(server, name) == {2: "AVAILABLE"} and not server.failures
