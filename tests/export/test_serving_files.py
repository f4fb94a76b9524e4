import re

import pytest
from google.protobuf import text_format
from helpers.serving_server import read_models
from tensorflow_serving.config import model_server_config_pb2

from export.formats.saved_model import write_serving_files
from export.provenance import make_safe_name


def test_models_config_serves_the_newest_version_of_the_model(exported):
    (model,) = read_models(exported)
    assert (model.name, model.base_path, model.model_platform) == ("tiny", "/models/tiny", "tensorflow")
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


def test_batching_and_monitoring_configs_are_consistent(exported):
    text = re.sub("#.*", "", (exported / "batching.config").read_text())
    values = {name: int(value) for name, value in re.findall(r"^(\w+) \{ value: (\d+) \}$", text, re.MULTILINE)}
    sizes = [int(size) for size in re.findall(r"^allowed_batch_sizes: (\d+)$", text, re.MULTILINE)]
    # The names of the fields in TensorFlow Serving's session_bundle_config.proto.
    assert set(values) == {"max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"}
    assert sizes == sorted(set(sizes)) and sizes[0] == 1 and sizes[-1] == values["max_batch_size"]
    assert len(values) + len(sizes) == len([line for line in text.splitlines() if line])
    text = re.sub("#.*", "", (exported / "monitoring.config").read_text())
    assert re.fullmatch(r'prometheus_config \{ enable: true path: "/monitoring/\S+" \}', " ".join(text.split()))


def test_docker_compose_mounts_the_files_of_the_export(exported):
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((exported / "docker-compose.yml").read_text())["services"]
    assert set(services) == {"tf-serving", "tf-serving-gpu"}
    service = services["tf-serving"]
    assert set(service) == {"image", "ports", "volumes", "command"}
    assert re.fullmatch(r"tensorflow/serving:\$\{[A-Z_]+:-[\w.-]+\}", service["image"])
    assert [port.split(":")[-2:] for port in service["ports"]] == [["8500", "8500"], ["8501", "8501"]]
    mounts = {}
    for volume in service["volumes"]:
        here, there, mode = volume.split(":")
        assert here.startswith("./") and (exported / here).exists() and mode == "ro"
        mounts[there] = (exported / here).name
    assert mounts[read_models(exported)[0].base_path] == "savedmodel"
    flags = dict(flag.removeprefix("--").split("=") for flag in service["command"])
    assert flags.pop("enable_batching") == "true"
    files = {"model_config_file": "models.config", "monitoring_config_file": "monitoring.config"}
    files["batching_parameters_file"] = "batching.config"
    assert {flag: mounts[path] for flag, path in flags.items()} == files
    # The official image reads no other switch of TF32 than this variable.
    gpu = services["tf-serving-gpu"]
    assert gpu["environment"] == {"NVIDIA_TF32_OVERRIDE": "0"} and gpu["extends"] == {"service": "tf-serving"}
    assert gpu["image"] == service["image"] + "-gpu" and gpu["profiles"] == ["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
