"""Switches, encodes, samples and scores pictures with an exported model behind TensorFlow Serving (REST or gRPC)."""

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

# Longest wait for a reply, in seconds. On a CPU a large model can need long for its first request.
TIMEOUT = 60
# {number of channels: mode of Pillow's images}
MODES = {1: "L", 3: "RGB"}
# The formats that the client accepts: Pillow reads them without calling another program, as EPS would need.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Largest picture, in pixels. Without a limit, a small file could expand to more pixels than fit into memory.
MOST_PIXELS = 2**26
DTYPES = {"DT_UINT8": np.uint8, "DT_FLOAT": np.float32}


class Problem(Exception):
    """An error whose message the client prints as one line before it ends with exit status 2."""


class Rest:
    """A connection to TensorFlow Serving's REST API, by rows ("instances", one per image) or columns ("inputs")."""

    def __init__(self, options):
        self.address = f"{options.host}:{options.rest_port}"
        self.model = options.model
        self.by_row = options.transport == "rest-row"
        # This dict is {signature: {"inputs": {name: {"dtype": ..., "tensor_shape": ...}}, "outputs": {...}}}.
        self.signatures = self._send_request("/metadata")["metadata"]["signature_def"]["signature_def"]

    def predict(self, signature, inputs):
        """Runs a signature on {name: array [n, ...]} and returns such a dict of outputs; raises Problem on failure."""
        columns = {name: array.tolist() for name, array in inputs.items()}
        if self.by_row:
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            reply = self._send_request(":predict", {"signature_name": signature, "instances": rows})["predictions"]
        else:
            reply = self._send_request(":predict", {"signature_name": signature, "inputs": columns})["outputs"]
        outputs = self.signatures[signature]["outputs"]
        if len(outputs) == 1:  # The server omits the name if there is only one output.
            reply = dict.fromkeys(outputs, reply)
        elif self.by_row:
            reply = {name: [row[name] for row in reply] for name in outputs}
        return {name: np.array(reply[name], DTYPES[info["dtype"]]) for name, info in outputs.items()}

    def _send_request(self, path, body=None):
        """Sends GET, or POST if there is a `body`, and returns the parsed JSON reply; raises Problem on failure."""
        url = f"http://{self.address}/v1/models/{self.model}{path}"
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data), timeout=TIMEOUT) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            text = extract_error(error.read())
            if error.code == 404:
                raise Problem(f"the server at {self.address} has no model {self.model}: {text}") from error
            raise Problem(f"the server at {self.address} answers {error.code} {error.reason}: {text}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Problem(f"no TensorFlow Serving (REST) at {self.address}: {error}") from error


def extract_error(body):
    """Returns the message in the bytes of an error reply: the value in {"error": ...}, or the entire text as it is."""
    try:
        return json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):
        return body.decode(errors="replace").strip()


class Grpc:
    """A connection to TensorFlow Serving's gRPC API, which takes arrays as protocol buffers."""

    def __init__(self, options):
        # These packages are imported here, so that clients of the REST API do not need TensorFlow.
        try:
            import grpc
            import tensorflow as tf
            from google.protobuf.json_format import MessageToDict
            from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc
        except ImportError as error:
            needed = "pip install -r requirements.txt"
            raise Problem(f"--transport grpc needs {error.name}, which is not installed: {needed}") from error

        self.grpc, self.tf, self.predict_pb2 = grpc, tf, predict_pb2
        self.address = f"{options.host}:{options.grpc_port}"
        self.model = options.model
        # The default limit of 4 MB is lifted, because local codes v of 20 images of 128x128 pixels exceed it.
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(self.address, unlimited))
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self.model
        signatures = get_model_metadata_pb2.SignatureDefMap()
        self._call_method(self.stub.GetModelMetadata, request).metadata["signature_def"].Unpack(signatures)
        self.signatures = MessageToDict(signatures, preserving_proto_field_name=True)["signature_def"]

    def predict(self, signature, inputs):
        """Runs a signature on {name: array [n, ...]} and returns such a dict of outputs; raises Problem on failure."""
        request = self.predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self.model, signature
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(self.tf.make_tensor_proto(array))
        reply = self._call_method(self.stub.Predict, request)
        return {name: self.tf.make_ndarray(tensor) for name, tensor in reply.outputs.items()}

    def _call_method(self, method, request):
        """Calls a method of the gRPC stub with a request and returns the reply; raises Problem if the call fails."""
        try:
            return method(request, timeout=TIMEOUT)
        except self.grpc.RpcError as error:
            code, text = error.code(), error.details()
            if code == self.grpc.StatusCode.UNAVAILABLE:
                raise Problem(f"no TensorFlow Serving (gRPC) at {self.address}: {text}") from error
            if code == self.grpc.StatusCode.NOT_FOUND:
                raise Problem(f"the server at {self.address} has no model {self.model}: {text}") from error
            raise Problem(f"the server at {self.address} answers {code.name}: {text}") from error


TRANSPORTS = {"rest-row": Rest, "rest-column": Rest, "grpc": Grpc}


def get_input_shape(server, signature, name):
    """Returns the shape of a signature's input, without the batch axis; raises Problem if the signature is missing."""
    if signature not in server.signatures:
        names = ", ".join(sorted(name for name in server.signatures if not name.startswith("__")))
        raise Problem(f"model {server.model} has no endpoint {signature}, only {names}")
    dimensions = server.signatures[signature]["inputs"][name]["tensor_shape"]["dim"]
    return tuple(int(dimension["size"]) for dimension in dimensions[1:])


def read_pictures(server, options):
    """Reads the picture files of the command line, resized to the model's shape: uint8 [n, height, width, channels]."""
    shape = get_input_shape(server, "encode", "images")
    if shape[-1] not in MODES:
        raise Problem(f"model {server.model} takes {shape[-1]} channels, and picture files are read as 1 or 3 here")
    return np.stack([read_picture(path, shape, options.crop) for path in options.pictures])


def read_picture(path, shape, crop=0):
    """Returns the centre of a picture file, resized to `shape`, as uint8; the pixels are those that training would use.

    The centre has the proportions of `shape`. Its shorter side has `crop` pixels, or as many as the picture allows if
    `crop` is 0 or too large. Raises Problem for a file that is no readable picture.
    """
    height, width, channels = shape
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # Reading a pipe could block forever.
            raise Problem(f"{path}: no regular file")
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MOST_PIXELS:
                file.draft(None, (file.width // 2, file.height // 2))  # A JPEG file is then decoded at half its size.
            if file.width * file.height > MOST_PIXELS:
                raise Problem(f"{path}: {file.width} x {file.height} pixels, more than {MOST_PIXELS:,}")
            picture = ImageOps.exif_transpose(file)
        if picture.mode.startswith("I;16"):  # convert() would clip 16-bit values instead of scaling them.
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        if picture.mode in ("I", "F"):
            raise Problem(f"{path}: its pixels have the mode {picture.mode}, not 8 or 16 bits")
    except Problem:
        raise
    except Image.DecompressionBombError as error:
        raise Problem(f"{path}: more than {MOST_PIXELS:,} pixels") from error
    except Exception as error:  # For a damaged file Pillow raises errors of many types.
        raise Problem(f"{path}: {getattr(error, 'strerror', None) or 'not an image'}") from error
    picture.info.pop("transparency", None)  # convert() would warn that it drops a palette's transparency.
    rows = min(picture.height, max(picture.width * height // width, 1))
    columns = min(picture.width, max(picture.height * width // height, 1))
    if crop:
        shorter = min(height, width)
        rows, columns = min(rows, crop * height // shorter), min(columns, crop * width // shorter)
    left, top = (picture.width - columns) // 2, (picture.height - rows) // 2
    # convert() comes before resize(), because resize() would average the palette indices of GIF and PNG files.
    centre = picture.convert(MODES[channels]).crop((left, top, left + columns, top + rows))
    return np.asarray(centre.resize((width, height), Image.Resampling.BILINEAR)).reshape(shape)


def make_test_images(height, width, channels):
    """Returns 16 images of smooth colour waves, uint8 [16, height, width, channels]; the same in all clients."""
    number, y, x, channel = np.ogrid[:16, :height, :width, :channels]
    phase = 256 * ((number % 4 + 1) * x + (number // 4 + 1) * y) // max(height, width) + 85 * channel
    return np.minimum(np.abs(phase % 512 - 256), 255).astype(np.uint8)


def draw_noise(server, signature, count, seed, u_noise="uniform"):
    """Draws the noise that a signature takes as input, as {name: float32 array}; exported models draw none."""
    rng = np.random.default_rng(seed)
    noise = {}
    for name in sorted(server.signatures.get(signature, {}).get("inputs", ())):
        if name.endswith("_noise"):
            draw = rng.random if name == "u_noise" and u_noise == "uniform" else rng.standard_normal
            noise[name] = draw((count, *get_input_shape(server, signature, name)), dtype=np.float32)
    return noise


def select_labels(server, signature, counts, labels):
    """Returns the label inputs of a signature, {input name: int32 array}; repeats `labels` if there are too few.

    `counts` has the number of images for the input `labels`, or for the inputs `labels_a` and `labels_b`. The function
    raises Problem if the signature needs labels and `labels` is empty.
    """
    names = sorted(name for name in server.signatures.get(signature, {}).get("inputs", ()) if name.startswith("labels"))
    if names and not labels:
        raise Problem(f"model {server.model} knows labels, and {signature} needs them: --labels 0 1, as its card says")
    if not names:
        return {}
    repeated = np.resize(np.array(labels, np.int32), sum(counts))
    return dict(zip(names, np.split(repeated, np.cumsum(counts)[:-1]), strict=True))


def save_picture(pixels, path):
    """Writes pixels, uint8 [height, width, channels], to the picture file `path`, and prints the path."""
    if pixels.shape[-1] not in MODES:
        raise Problem(f"{path}: images of {pixels.shape[-1]} channels are no pictures, which have 1 or 3 here")
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    print(path)


def switch_pictures(server, options):
    """Writes images_ab.png (z of picture a, v of b) and images_ba.png (z of b, v of a) for the two picture files."""
    get_input_shape(server, "switch", "images_a")  # This raises Problem for a model without z.
    a, b = read_pictures(server, options)
    inputs = {"images_a": a[None], "images_b": b[None], **select_labels(server, "switch", [1, 1], options.labels)}
    for name, images in sorted(server.predict("switch", inputs).items()):
        save_picture(images[0], options.to / f"{name}.png")


def encode_pictures(server, options):
    """Writes z and v of the picture files to codes.npz, and prints for each picture whether it decodes exactly."""
    images = read_pictures(server, options)
    labels = select_labels(server, "encode", [len(images)], options.labels)
    codes = server.predict("encode", {"images": images, **labels})
    bin_size = find_bin_size(server)
    decoded = server.predict("decode", codes)["images"]
    np.savez(options.to / "codes.npz", **codes)
    print(options.to / "codes.npz", *(f"{name} {list(code.shape)}" for name, code in sorted(codes.items())))
    for path, before, after in zip(options.pictures, images // bin_size * bin_size, decoded, strict=True):
        different = np.count_nonzero(before != after)
        same = "is identical" if different == 0 else f"differs in {different} of {before.size} values"
        print(f"decode(encode({path})) {same}")


def sample_pictures(server, options):
    """Samples `options.count` images from the model and writes them as sample_0.png, sample_1.png and so on."""
    noise = draw_noise(server, "sample", options.count, options.seed)
    temperature = np.full([options.count], options.temperature, np.float32)
    labels = select_labels(server, "sample", [options.count], options.labels)
    images = server.predict("sample", {**noise, **labels, "temperature": temperature})["images"]
    for number, image in enumerate(images):
        save_picture(image, options.to / f"sample_{number}.png")


def score_pictures(server, options):
    """Prints the bits per dimension (the negative ELBO per colour value) of each picture file."""
    images = read_pictures(server, options)
    noise = draw_noise(server, "score", len(images), options.seed, options.u_noise)
    labels = select_labels(server, "score", [len(images)], options.labels)
    bits = server.predict("score", {"images": images, **labels, **noise})["bits_per_dim"]
    for path, value in zip(options.pictures, bits, strict=True):
        print(f"{path}: {value:.4f} bits per dimension")


def reconstruct_image(server, image):
    """Encodes and decodes an image on the server; returns the decoded image, uint8 [height, width, channels]."""
    labels = select_labels(server, "encode", [1], [0])
    return server.predict("decode", server.predict("encode", {"images": image[None], **labels}))["images"][0]


def find_bin_size(server):
    """Returns the bin size, the smallest difference between pixel values of the model: 2 ** (8 - n_bits).

    The server does not report n_bits. All decoded values are multiples of the bin size, a power of two. The bin size is
    therefore the lowest bit that is set in any value of a decoded noise image.
    """
    noise = np.random.default_rng(0).integers(0, 256, get_input_shape(server, "encode", "images"), dtype=np.uint8)
    bits = int(np.bitwise_or.reduce(reconstruct_image(server, noise), axis=None))
    return bits & -bits or 1


def check_exactness(server):
    """Prints how many of 16 test images the server decodes exactly, and returns the exit status: 0 for all, else 5."""
    bin_size = find_bin_size(server)
    images = make_test_images(*get_input_shape(server, "encode", "images")) // bin_size * bin_size
    # Images are sent one by one, because a server may limit the size of a batch.
    exact = sum(np.array_equal(reconstruct_image(server, image), image) for image in images)
    print(f"{exact} of {len(images)} test images decode exactly")
    return 0 if exact == len(images) else 5


COMMANDS = {
    "switch": switch_pictures,
    "encode": encode_pictures,
    "sample": sample_pictures,
    "score": score_pictures,
}


def parse_arguments(arguments):
    """Parses the command line to a namespace of options; ends the program with a message if an option is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", nargs="?", choices=COMMANDS)
    parser.add_argument("pictures", nargs="*", help="two files for switch, none for sample, else one or more")
    parser.add_argument("--check", action="store_true", help="encode and decode test images; status 5: one differs")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--rest-port", type=int, default=8501)
    parser.add_argument("--grpc-port", type=int, default=8500)
    parser.add_argument("--model", default="quickstart", help="name of the model in models.config")
    parser.add_argument("--transport", choices=TRANSPORTS, default="rest-column")
    parser.add_argument("--crop", type=int, default=0, metavar="N", help="keep the middle N x N pixels of a picture")
    parser.add_argument("--to", type=pathlib.Path, default="out", help="folder for the results")
    parser.add_argument("--count", type=int, default=4, help="number of samples")
    parser.add_argument("--temperature", type=float, default=0.7, help="scale of v of samples; lower is smoother")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise for sample and score")
    parser.add_argument(
        "--u-noise",
        choices=["uniform", "normal"],
        default="uniform",
        help="distribution of u_noise for score; the model card names it",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="labels of the pictures or samples; the model card explains them",
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
    """Runs the command of the command line; returns 0, or 5 if `--check` finds an inexact image, or 2 for an error."""
    options = parse_arguments(arguments)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # The limit MOST_PIXELS replaces Pillow's.
    try:
        server = TRANSPORTS[options.transport](options)
        if options.check:
            return check_exactness(server)
        options.to.mkdir(parents=True, exist_ok=True)
        COMMANDS[options.command](server, options)
        return 0
    except (Problem, OSError) as problem:
        print(f"client.py: {problem}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
