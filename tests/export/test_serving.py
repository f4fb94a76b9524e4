"""The example client of TensorFlow Serving, which is no Python package, against helpers/serving_server.py."""

import contextlib
import io
import socket

import numpy as np
import pytest
import tensorflow as tf
from helpers.models import SMALL, random_images
from helpers.places import ROOT, run_python
from helpers.program_inputs import load_program
from helpers.serving_server import Server
from PIL import Image

CLIENT = ROOT / "examples" / "tf_serving" / "client.py"
TRANSPORTS = ("rest-row", "rest-column", "grpc")


@pytest.fixture(scope="module")
def client():
    return load_program(CLIENT)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Paths of two picture files: a dark gradient in landscape format, and bright noise in portrait format."""
    folder = tmp_path_factory.mktemp("pictures")
    slope = np.repeat(np.arange(32, dtype=np.uint8)[None, :, None], 20, 0)
    Image.fromarray(np.tile(slope, (1, 1, 3))).save(folder / "a.jpg")
    Image.fromarray(random_images(1, 40)[0, :, :24] // 2 + 128).save(folder / "b.png")
    return [str(folder / "a.jpg"), str(folder / "b.png")]


@pytest.fixture(scope="module")
def address(exported):
    """A function of a transport that returns the client's arguments for a running server: ports, model, transport."""
    with Server(exported / "savedmodel", "tiny") as server:

        def call(transport, model="tiny", ports=None):
            rest, grpc = ports or (server.rest_port, server.grpc_port)
            return ["--rest-port", str(rest), "--grpc-port", str(grpc), "--model", model, "--transport", transport]

        yield call


@pytest.fixture
def complaint(client, address, tmp_path, capsys):
    def call(transport, *arguments, **options):
        assert client.main([*arguments, "--to", str(tmp_path), *address(transport, **options)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("client.py: ") and err.count("\n") == 1
        return err.removeprefix("client.py: ").strip()

    return call


@pytest.fixture(scope="module")
def results(client, address, pictures, tmp_path_factory):
    """Results of each command, {transport: {name: result}}: printed text of commands, arrays of pictures and codes."""
    found = {}
    for transport in TRANSPORTS:
        folder, mine = tmp_path_factory.mktemp(transport), found.setdefault(transport, {})
        for command, *arguments in (
            ["switch", *pictures],
            ["encode", *pictures],
            ["sample", "--count", "3", "--temperature", "0.6", "--seed", "5"],
            ["score", *pictures, "--seed", "5"],
        ):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                assert client.main([command, *arguments, "--to", str(folder), *address(transport)]) == 0
            mine[command] = printed.getvalue().replace(str(folder), "OUT")
        mine.update({path.name: np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))})
        mine.update(np.load(folder / "codes.npz"))
    return found


def test_all_transports_give_the_same_results(results):
    first = results["rest-row"]
    files = {"images_ab.png", "images_ba.png", *(f"sample_{n}.png" for n in range(3))}
    assert set(first) == {"switch", "encode", "sample", "score", "z", "v", *files}
    for transport in TRANSPORTS[1:]:
        np.testing.assert_equal(results[transport], first)


def test_results_are_the_saved_models_own(results, exported, client, pictures):
    got, size, loaded = results["grpc"], SMALL.image_shape[0], tf.saved_model.load(str(exported / "savedmodel" / "1"))
    signatures = loaded.signatures
    images = np.stack([client.read_picture(path, (size, size, 3)) for path in pictures])
    switched = signatures["switch"](images_a=images[:1], images_b=images[1:])
    np.testing.assert_array_equal(got["images_ab.png"], switched["images_ab"][0])
    np.testing.assert_array_equal(got["images_ba.png"], switched["images_ba"][0])
    assert np.any(got["images_ab.png"] != got["images_ba.png"])

    for key, codes in signatures["encode"](images=images).items():
        assert got[key].dtype == np.float32
        np.testing.assert_allclose(got[key], codes, atol=1e-5)
    lines = got["encode"].splitlines()
    assert lines[0].startswith("OUT/codes.npz v [2, 8, 8, 3] z [2, 4]")
    assert lines[1:] == [f"decode(encode({path})) is identical" for path in pictures]

    rng = np.random.default_rng(5)
    v_noise, z_noise = (rng.standard_normal((3, *shape), np.float32) for shape in (SMALL.image_shape, (4,)))
    temperature = np.full(3, 0.6, np.float32)
    samples = signatures["sample"](z_noise=z_noise, v_noise=v_noise, temperature=temperature)["images"]
    np.testing.assert_array_equal([got[f"sample_{number}.png"] for number in range(3)], samples)

    rng = np.random.default_rng(5)
    u_noise, z_noise = rng.random((2, size, size, 3), np.float32), rng.standard_normal((2, 4), np.float32)
    bits = signatures["score"](images=images, z_noise=z_noise, u_noise=u_noise)["bits_per_dim"]
    printed = [float(line.split(": ")[1].split()[0]) for line in got["score"].splitlines()]
    np.testing.assert_allclose(printed, bits, atol=1e-3)


def test_messages_above_the_default_limit_of_grpc_are_sent(client, address):
    """The client must lift gRPC's default limit, which refuses messages of more than 4 MB."""
    connection = client.TRANSPORTS["grpc"](client.parse_arguments(["sample", *address("grpc")]))
    codes = connection.predict("encode", {"images": np.tile(random_images(8), (750, 1, 1, 1))})
    assert codes["v"].nbytes > 4 << 20
    decoded = connection.predict("decode", codes)["images"]
    np.testing.assert_array_equal(decoded[-8:], random_images(8))


def test_client_runs_as_a_script_without_tensorflow_by_rest(address, tmp_path):
    program = "import runpy, sys; sys.modules |= dict.fromkeys(['tensorflow', 'grpc'])"
    program += "; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    done = run_python("-c", program, CLIENT, "sample", "--count", 1, "--to", tmp_path, *address("rest-row"))
    assert (done.returncode, done.stdout.split()) == (0, [str(tmp_path / "sample_0.png")]), done.stderr


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_missing_server_or_model_is_named(complaint, transport):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    api = "gRPC" if transport == "grpc" else "REST"
    assert f"no TensorFlow Serving ({api}) at localhost:{port}" in complaint(transport, "sample", ports=(port, port))
    text = complaint(transport, "sample", model="other")
    assert "has no model other: Servable not found for request: Latest(other)" in text


def test_file_that_is_no_picture_is_named(complaint, tmp_path):
    path = tmp_path / "a.png"
    assert complaint("rest-row", "score", str(path)) == f"{path}: No such file or directory"
    Image.fromarray(random_images(1, 64)[0]).save(path)
    for content in (path.read_bytes()[:5000], b"not a picture"):
        path.write_bytes(content)
        assert complaint("rest-row", "score", str(path)).startswith(f"{path}: not an image")


def test_check_of_a_right_server_finds_all_images_exact(client, address, capsys):
    for transport in TRANSPORTS:
        assert client.main(["--check", *address(transport)]) == 0
        assert capsys.readouterr().out == "16 of 16 test images decode exactly\n"


def test_wrong_arguments_of_the_serving_client_are_refused(client, capsys):
    for arguments in (
        *("switch a.jpg", "encode", "sample a.jpg", "sample --count 0", "", "--check encode a.jpg"),
        "encode a.jpg --crop=-1",
    ):
        with pytest.raises(SystemExit) as caught:
            client.main(arguments.split())
        assert caught.value.code == 2 and "error: " in capsys.readouterr().err
