"""An endpoint and two formats of exports."""

import numpy as np

from export.endpoints import IMAGE, LABEL, Array, Endpoint
from export.formats import Format


def list_inputs(config):
    images = Array("images", "uint8", config.image_shape, "pixels, 0..255", IMAGE)
    labels = Array("labels", "int32", (), "label of the image", LABEL, labels=(0, config.classes))
    return (images, labels) if config.has_label_codes else (images,)


def make_reconstruct(config):
    return Endpoint(
        name="reconstruct", summary="Encodes and decodes.", inputs=list_inputs(config),
        outputs=(Array("decoded", "uint8", config.image_shape, "the same pixels", IMAGE),),
        answer=reconstruct, reference=call_reconstruct, onnx="reconstructor",
    )  # fmt: skip


def reconstruct(model, inputs):
    return {"decoded": model.decode(*model.encode(inputs["images"], inputs.get("labels")))}


def call_reconstruct(model, inputs):
    model.encode(inputs["images"], inputs.get("labels"), verify=True)
    return {"decoded": inputs["images"]}


class Weights(Format):
    name = "weights"
    files = r"weights\.npz"

    def write(self, exported, provenance, folder):
        folder.mkdir()
        np.savez(folder / "weights.npz", **exported.collect_arrays())
        return {}


class Graphs(Format):
    name = "graphs"
    files = r"\w+\.pb"

    @property
    def runtime(self):
        from mine.graph_files import GraphFiles

        return GraphFiles

    def write(self, exported, provenance, folder):
        from mine.graph_files import write_graph

        folder.mkdir()
        endpoints = [endpoint for endpoint in exported.endpoints if endpoint.onnx]
        for endpoint in endpoints:
            write_graph(exported, endpoint, folder / f"{endpoint.onnx}.pb")
        return {endpoint.name: endpoint.onnx for endpoint in endpoints}
