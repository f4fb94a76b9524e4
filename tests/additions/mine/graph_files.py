"""Files of the format `graphs`, and the runtime that opens them."""

import tensorflow as tf

from export.formats.runtimes import Runtime


def write_graph(exported, endpoint, path):
    arrays = exported.collect_arrays()
    with tf.Graph().as_default() as graph:
        inputs = {
            array.name: tf.compat.v1.placeholder(array.dtype, array.make_tensor_spec().shape, f"in/{array.name}")
            for array in endpoint.inputs
        }
        answers = exported.make_answers(lambda name: tf.constant(arrays[name], name="weight"))
        for name, tensor in endpoint.answer(answers, inputs).items():
            tf.identity(tensor, f"out/{name}")
    path.write_bytes(graph.as_graph_def().SerializeToString())


class GraphFiles(Runtime):
    package, suffix = "tensorflow", ".pb"

    def __init__(self, folder, names):
        super().__init__(folder, names)
        self._graphs = {}
        for endpoint, name in names.items():
            with tf.Graph().as_default() as self._graphs[endpoint]:
                definition = tf.compat.v1.GraphDef.FromString((folder / f"{name}.pb").read_bytes())
                tf.import_graph_def(definition, name="")

    def _find(self, endpoint, prefix):
        operations = self._graphs[endpoint].get_operations()
        return {one.name.removeprefix(prefix): one.outputs[0] for one in operations if one.name.startswith(prefix)}

    def call_endpoint(self, endpoint, inputs):
        given = {tensor: inputs[name] for name, tensor in self._find(endpoint, "in/").items()}
        with tf.compat.v1.Session(graph=self._graphs[endpoint]) as session:
            return session.run(self._find(endpoint, "out/"), given)

    def read_shapes(self, endpoint):
        tensors = {**self._find(endpoint, "in/"), **self._find(endpoint, "out/")}
        return {name: tuple(tensor.shape.as_list()) for name, tensor in tensors.items()}

    def read_weights(self):
        for name, graph in self._graphs.items():
            for one in graph.get_operations():
                if one.type == "Const" and one.name.startswith("weight") and one.outputs[0].shape.rank:
                    yield f"{name}: {one.name}", tf.make_ndarray(one.get_attr("value"))
