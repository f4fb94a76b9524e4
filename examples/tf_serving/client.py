"""A client of TensorFlow Serving for an exported model, over REST (rows or columns) or gRPC."""

import argparse
import http.client
import json
import os
import pathlib
import stat
import sys
import urllib.error
import urllib.request
import warnings

import numpy as np
from PIL import Image, ImageOps

TIMEOUT = 60  # seconds; the first request of a large model on a CPU may take some
# Formats for which Pillow starts no other program, and pixels that a file may have: a small one can claim any number.
MODES = {1: "L", 3: "RGB"}  # what Pillow makes of any picture, by the number of channels
FORMATS, MOST_PIXELS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"), 2**27
DTYPES = {"DT_UINT8": np.uint8, "DT_FLOAT": np.float32}


class Problem(Exception):
    """What the user is told, in one line."""


class Rest:
    """The REST API: JSON, either a list of rows ("instances") or an object of columns ("inputs")."""

    def __init__(self, options):
        self.where = f"{options.host}:{options.rest_port}"
        self.model = options.model
        self.by_row = options.transport == "rest-row"
        # {signature: {"inputs": {name: {"dtype": ..., "tensor_shape": ...}}, "outputs": ...}}
        self.signatures = self._ask("/metadata")["metadata"]["signature_def"]["signature_def"]

    def predict(self, signature, inputs):
        """Calls a signature: arrays by name in, arrays by name out, all with the batch first."""
        columns = {name: array.tolist() for name, array in inputs.items()}
        if self.by_row:
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            reply = self._ask(":predict", {"signature_name": signature, "instances": rows})["predictions"]
        else:
            reply = self._ask(":predict", {"signature_name": signature, "inputs": columns})["outputs"]
        outputs = self.signatures[signature]["outputs"]
        if len(outputs) == 1:  # then the server leaves the name out
            reply = dict.fromkeys(outputs, reply)
        elif self.by_row:
            reply = {name: [row[name] for row in reply] for name in outputs}
        return {name: np.array(reply[name], DTYPES[info["dtype"]]) for name, info in outputs.items()}

    def _ask(self, path, body=None):
        url = f"http://{self.where}/v1/models/{self.model}{path}"
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data), timeout=TIMEOUT) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            text = error_text(error.read())
            if error.code == 404:
                raise Problem(f"the server at {self.where} has no model {self.model}: {text}") from error
            raise Problem(f"the server at {self.where} answers {error.code} {error.reason}: {text}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Problem(f"no TensorFlow Serving (REST) at {self.where}: {error}") from error


def error_text(body):
    """What the server says: TensorFlow Serving's {"error": ...}, or anything else as it is."""
    try:
        return json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):
        return body.decode(errors="replace").strip()


class Grpc:
    """The gRPC API: tensors as protocol buffers."""

    def __init__(self, options):
        # Here, because they bring TensorFlow, which REST has no need of.
        try:
            import grpc
            import tensorflow as tf
            from google.protobuf.json_format import MessageToDict
            from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc
        except ImportError as error:
            needed = "pip install -r requirements.txt"
            raise Problem(f"--transport grpc needs {error.name}, which is not installed: {needed}") from error

        self.grpc, self.tf, self.predict_pb2 = grpc, tf, predict_pb2
        self.where = f"{options.host}:{options.grpc_port}"
        self.model = options.model
        # Without these, replies end at 4 MB: some twenty local codes of 128x128 pixels.
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(self.where, unlimited))
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self.model
        signatures = get_model_metadata_pb2.SignatureDefMap()
        self._call(self.stub.GetModelMetadata, request).metadata["signature_def"].Unpack(signatures)
        self.signatures = MessageToDict(signatures, preserving_proto_field_name=True)["signature_def"]

    def predict(self, signature, inputs):
        """As `Rest.predict`."""
        request = self.predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self.model, signature
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(self.tf.make_tensor_proto(array))
        reply = self._call(self.stub.Predict, request)
        return {name: self.tf.make_ndarray(tensor) for name, tensor in reply.outputs.items()}

    def _call(self, method, request):
        try:
            return method(request, timeout=TIMEOUT)
        except self.grpc.RpcError as error:
            code, text = error.code(), error.details()
            if code == self.grpc.StatusCode.UNAVAILABLE:
                raise Problem(f"no TensorFlow Serving (gRPC) at {self.where}: {text}") from error
            if code == self.grpc.StatusCode.NOT_FOUND:
                raise Problem(f"the server at {self.where} has no model {self.model}: {text}") from error
            raise Problem(f"the server at {self.where} answers {code.name}: {text}") from error


TRANSPORTS = {"rest-row": Rest, "rest-column": Rest, "grpc": Grpc}


def shape_of(server, signature, name):
    """The shape of an input, without the batch."""
    if signature not in server.signatures:
        others = ", ".join(sorted(other for other in server.signatures if not other.startswith("__")))
        raise Problem(f"model {server.model} has no endpoint {signature}, only {others}")
    dimensions = server.signatures[signature]["inputs"][name]["tensor_shape"]["dim"]
    return tuple(int(dimension["size"]) for dimension in dimensions[1:])


def read_pictures(server, options):
    """Pictures as the model takes them, [count, height, width, channels]."""
    shape = shape_of(server, "encode", "images")
    if shape[-1] not in MODES:
        raise Problem(f"model {server.model} takes {shape[-1]} channels, and picture files are read as 1 or 3 here")
    return np.stack([read_picture(path, shape, options.crop) for path in options.pictures])


def read_picture(path, shape, crop=0):
    """The centre of a picture, made as the training images were; one of the right size passes as it is.

    It has the proportions of the model's images, and `crop` pixels along its shorter side; it is the largest such
    part where that is 0 or does not fit.
    """
    height, width, channels = shape
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for without an end
            raise Problem(f"{path}: no regular file")
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MOST_PIXELS:
                raise Problem(f"{path}: {file.width} x {file.height} pixels, more than {MOST_PIXELS:,}")
            picture = ImageOps.exif_transpose(file)
        if picture.mode.startswith("I;16"):  # convert() would clip 16 bits to 8 instead of scaling them.
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        if picture.mode in ("I", "F"):
            raise Problem(f"{path}: its pixels have the mode {picture.mode}, not 8 or 16 bits")
    except Problem:
        raise
    except Image.DecompressionBombError as error:
        raise Problem(f"{path}: more than {MOST_PIXELS:,} pixels") from error
    except Exception as error:  # Pillow raises nearly anything at a damaged file
        raise Problem(f"{path}: {getattr(error, 'strerror', None) or 'not an image'}") from error
    picture.info.pop("transparency", None)  # convert() would drop a palette's with a warning.
    rows = min(picture.height, max(picture.width * height // width, 1))
    columns = min(picture.width, max(picture.height * width // height, 1))
    if crop:
        shorter = min(height, width)
        rows, columns = min(rows, crop * height // shorter), min(columns, crop * width // shorter)
    left, top = (picture.width - columns) // 2, (picture.height - rows) // 2
    # Colours before resizing: palette indices have no averages, and transparent pixels count like others.
    centre = picture.convert(MODES[channels]).crop((left, top, left + columns, top + rows))
    return np.asarray(centre.resize((width, height), Image.Resampling.BILINEAR)).reshape(shape)


def known_images(height, width, channels):
    """16 images of smooth colour waves, uint8 [16, height, width, channels], the same on every machine."""
    number, y, x, channel = np.ogrid[:16, :height, :width, :channels]
    phase = 256 * ((number % 4 + 1) * x + (number // 4 + 1) * y) // max(height, width) + 85 * channel
    return np.minimum(np.abs(phase % 512 - 256), 255).astype(np.uint8)


def draw_noise(server, signature, count, seed, u_noise="uniform"):
    """The noise that an endpoint asks for; the models themselves hold no random state."""
    rng = np.random.default_rng(seed)
    noise = {}
    for name in sorted(server.signatures.get(signature, {}).get("inputs", ())):
        if name.endswith("_noise"):
            draw = rng.random if name == "u_noise" and u_noise == "uniform" else rng.standard_normal
            noise[name] = draw((count, *shape_of(server, signature, name)), dtype=np.float32)
    return noise


def labels_for(server, signature, counts, given):
    """The labels that an endpoint asks for: {input: as many as it has images}, of those given, again from the first.

    `counts` are the numbers of images of labels, or of labels_a and labels_b.
    """
    names = sorted(name for name in server.signatures.get(signature, {}).get("inputs", ()) if name.startswith("labels"))
    if names and not given:
        raise Problem(f"model {server.model} knows labels, and {signature} needs them: --labels 0 1, as its card says")
    if not names:
        return {}
    every = np.resize(np.array(given, np.int32), sum(counts))
    return dict(zip(names, np.split(every, np.cumsum(counts)[:-1]), strict=True))


def save_picture(pixels, path):
    if pixels.shape[-1] not in MODES:
        raise Problem(f"{path}: images of {pixels.shape[-1]} channels are no pictures, which have 1 or 3 here")
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    print(path)


def switch(server, options):
    shape_of(server, "switch", "images_a")  # a model without z has no switch
    a, b = read_pictures(server, options)
    inputs = {"images_a": a[None], "images_b": b[None], **labels_for(server, "switch", [1, 1], options.labels)}
    for name, images in sorted(server.predict("switch", inputs).items()):
        save_picture(images[0], options.to / f"{name}.png")


def encode(server, options):
    images = read_pictures(server, options)
    labels = labels_for(server, "encode", [len(images)], options.labels)
    codes = server.predict("encode", {"images": images, **labels})
    step = level_step(server)
    decoded = server.predict("decode", codes)["images"]
    np.savez(options.to / "codes.npz", **codes)
    print(options.to / "codes.npz", *(f"{name} {list(code.shape)}" for name, code in sorted(codes.items())))
    for path, before, after in zip(options.pictures, images // step * step, decoded, strict=True):
        different = np.count_nonzero(before != after)
        same = "is identical" if different == 0 else f"differs in {different} of {before.size} values"
        print(f"decode(encode({path})) {same}")


def sample(server, options):
    noise = draw_noise(server, "sample", options.count, options.seed)
    temperature = np.full([options.count], options.temperature, np.float32)
    labels = labels_for(server, "sample", [options.count], options.labels)
    images = server.predict("sample", {**noise, **labels, "temperature": temperature})["images"]
    for number, image in enumerate(images):
        save_picture(image, options.to / f"sample_{number}.png")


def score(server, options):
    images = read_pictures(server, options)
    noise = draw_noise(server, "score", len(images), options.seed, options.u_noise)
    labels = labels_for(server, "score", [len(images)], options.labels)
    bits = server.predict("score", {"images": images, **labels, **noise})["bits_per_dim"]
    for path, value in zip(options.pictures, bits, strict=True):
        print(f"{path}: {value:.4f} bits per dimension")


def there_and_back(server, image):
    """An image as it comes back from its codes."""
    labels = labels_for(server, "encode", [1], [0])
    return server.predict("decode", server.predict("encode", {"images": image[None], **labels}))["images"][0]


def level_step(server):
    """What neighbouring levels differ by as pixels: a model of fewer than 8 bits knows multiples of it alone.

    The server tells no number of bits, but what it decodes does: the lowest bit that is set anywhere in noise.
    """
    noise = np.random.default_rng(0).integers(0, 256, shape_of(server, "encode", "images"), dtype=np.uint8)
    bits = int(np.bitwise_or.reduce(there_and_back(server, noise), axis=None))
    return bits & -bits or 1


def check(server):
    """Says how many known images come back from their codes; the exit status is 1 unless all do."""
    step = level_step(server)
    images = known_images(*shape_of(server, "encode", "images")) // step * step
    # one at a time: a batch may be more than the server takes
    same = sum(np.array_equal(there_and_back(server, image), image) for image in images)
    print(f"{same} of {len(images)} known images come back exactly")
    return 0 if same == len(images) else 1


COMMANDS = {"switch": switch, "encode": encode, "sample": sample, "score": score}


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", nargs="?", choices=COMMANDS)
    parser.add_argument("pictures", nargs="*", help="two for switch, none for sample, else one or more")
    parser.add_argument("--check", action="store_true", help="send known images through; do they come back?")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--rest-port", type=int, default=8501)
    parser.add_argument("--grpc-port", type=int, default=8500)
    parser.add_argument("--model", default="quickstart", help="its name in models.config")
    parser.add_argument("--transport", choices=TRANSPORTS, default="rest-column")
    parser.add_argument("--crop", type=int, default=0, metavar="N", help="keep the middle N x N pixels of a picture")
    parser.add_argument("--to", type=pathlib.Path, default="out", help="folder for what comes back")
    parser.add_argument("--count", type=int, default=4, help="of samples")
    parser.add_argument("--temperature", type=float, default=0.7, help="of samples; lower is smoother")
    parser.add_argument("--seed", type=int, default=0, help="of the noise for sample and score")
    parser.add_argument(
        "--u-noise", choices=["uniform", "normal"], default="uniform", help="of score, as the model card says"
    )
    parser.add_argument(
        "--labels", nargs="+", type=int, default=[], metavar="N", help="of the pictures or samples, by the model card"
    )
    options = parser.parse_intermixed_args(arguments)
    if (options.command is None) != options.check:
        parser.error("give a command, or --check and none")
    count = len(options.pictures)
    if not options.check and count != {"switch": 2, "sample": 0}.get(options.command, max(count, 1)):
        parser.error(f"{options.command} does not take {count} pictures")
    if options.count < 1:
        parser.error("--count must be at least 1")
    if options.seed < 0:
        parser.error("--seed must not be negative")
    if options.crop < 0:
        parser.error("--crop must not be negative")
    return options


def main(arguments=None):
    options = parse(arguments)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # FORMATS and MOST_PIXELS say what is read
    try:
        server = TRANSPORTS[options.transport](options)
        if options.check:
            return check(server)
        options.to.mkdir(parents=True, exist_ok=True)
        COMMANDS[options.command](server, options)
        return 0
    except (Problem, OSError) as problem:
        print(f"client.py: {problem}", file=sys.stderr)
        return 2  # 1 says that images are lost


if __name__ == "__main__":
    sys.exit(main())
