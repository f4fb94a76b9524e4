"""The network of FID against NumPy and torchvision, its file, and that the checksum alone gives a distance its name."""

import functools
import hashlib
import http.server
import threading
import types
import urllib.request

import numpy as np
import pytest
from helpers.extractors import colours, report_of, write_onnx
from helpers.models import random_images
from numpy.lib.stride_tricks import sliding_window_view

from tfdecouple.metrics import inception
from tfdecouple.metrics.extractors import ExtractorError, open_extractor
from tfdecouple.metrics.frechet import summary
from tfdecouple.metrics.inception import Inception, cached_path, find_inception
from tfdecouple.storage import torch_state


@functools.cache
def random_state(seed=0):
    """Weights that keep activations at about 1, and batch normalisations with an effect."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in inception.shapes().items():
        if name.endswith(("bn.weight", "running_var")):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) == 4 else 0.2
            values = scale * rng.standard_normal(shape, np.float32)
        state[name] = values.astype(np.float32)
    return state


@pytest.fixture(scope="module")
def network():
    return Inception(random_state())


def largest_difference(found, wanted):
    """Relative to the largest feature."""
    return np.abs(found - wanted).max() / np.abs(wanted).max()


class ByNumpy:
    """Inception v3 as FID has it, written down once more, branch by branch and in double precision."""

    def __init__(self, state):
        self.state = state

    def conv(self, x, name, stride=1, pad=(0, 0)):
        kernel, gain, shift, mean, variance = (
            self.state[f"{name}.{part}"].astype(np.float64)
            for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        )
        x = np.pad(x, [(0, 0), (pad[0],) * 2, (pad[1],) * 2, (0, 0)])
        windows = sliding_window_view(x, kernel.shape[2:], (1, 2))[:, ::stride, ::stride]
        y = np.tensordot(windows, kernel, [(3, 4, 5), (1, 2, 3)])
        return np.maximum((y - mean) / np.sqrt(variance + 1e-3) * gain + shift, 0)

    def chain(self, x, prefix, *units):
        for name, *how in units:
            x = self.conv(x, prefix + name, *how)
        return x

    @staticmethod
    def pool(x, reduce, stride, pad):
        x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)], constant_values=np.nan)
        return reduce(sliding_window_view(x, (3, 3), (1, 2))[:, ::stride, ::stride], axis=(-2, -1))

    def mean(self, x):
        return self.pool(x, np.nanmean, 1, 1)

    def down(self, x):
        return self.pool(x, np.nanmax, 2, 0)

    def block_a(self, x, p):
        return [
            self.conv(x, p + "1x1"),
            self.chain(x, p, ["5x5_1"], ["5x5_2", 1, (2, 2)]),
            self.chain(x, p, ["3x3dbl_1"], ["3x3dbl_2", 1, (1, 1)], ["3x3dbl_3", 1, (1, 1)]),
            self.conv(self.mean(x), p + "_pool"),
        ]

    def block_b(self, x, p):
        return [
            self.conv(x, p + "3x3", 2),
            self.chain(x, p, ["3x3dbl_1"], ["3x3dbl_2", 1, (1, 1)], ["3x3dbl_3", 2]),
            self.down(x),
        ]

    def block_c(self, x, p):
        double = [(f"7x7dbl_{k}", 1, (3, 0) if k % 2 == 0 else (0, 3)) for k in (2, 3, 4, 5)]
        return [
            self.conv(x, p + "1x1"),
            self.chain(x, p, ["7x7_1"], ["7x7_2", 1, (0, 3)], ["7x7_3", 1, (3, 0)]),
            self.chain(x, p, ["7x7dbl_1"], *double),
            self.conv(self.mean(x), p + "_pool"),
        ]

    def block_d(self, x, p):
        return [
            self.chain(x, p, ["3x3_1"], ["3x3_2", 2]),
            self.chain(x, p, ["7x7x3_1"], ["7x7x3_2", 1, (0, 3)], ["7x7x3_3", 1, (3, 0)], ["7x7x3_4", 2]),
            self.down(x),
        ]

    def block_e(self, x, p, pooled):
        single = self.conv(x, p + "3x3_1")
        double = self.chain(x, p, ["3x3dbl_1"], ["3x3dbl_2", 1, (1, 1)])
        return [
            self.conv(x, p + "1x1"),
            self.conv(single, p + "3x3_2a", 1, (0, 1)),
            self.conv(single, p + "3x3_2b", 1, (1, 0)),
            self.conv(double, p + "3x3dbl_3a", 1, (0, 1)),
            self.conv(double, p + "3x3dbl_3b", 1, (1, 0)),
            self.conv(pooled, p + "_pool"),
        ]

    def __call__(self, x):
        x = self.chain(x, "Conv2d_", ["1a_3x3", 2], ["2a_3x3"], ["2b_3x3", 1, (1, 1)])
        x = self.chain(self.down(x), "Conv2d_", ["3b_1x1"], ["4a_3x3"])
        x = self.down(x)
        blocks = dict.fromkeys(("5b", "5c", "5d"), self.block_a) | {"6a": self.block_b}
        blocks |= dict.fromkeys(("6b", "6c", "6d", "6e"), self.block_c) | {"7a": self.block_d}
        for name, block in blocks.items():
            x = np.concatenate(block(x, f"Mixed_{name}.branch"), -1)
        x = np.concatenate(self.block_e(x, "Mixed_7b.branch", self.mean(x)), -1)
        largest = self.pool(x, np.nanmax, 1, 1)
        return np.concatenate(self.block_e(x, "Mixed_7c.branch", largest), -1).mean((1, 2))


class TestNetwork:
    def test_is_inception_v3(self):
        shapes = inception.shapes()
        assert len(list(inception.units())) == 94 and len(shapes) == 5 * 94
        learned = sum(int(np.prod(shape)) for name, shape in shapes.items() if "running" not in name)
        # All of Inception v3 without the classifier; with it, of 1,008 classes, 23.85 million.
        assert learned == 21_785_568 and learned + 2048 * 1008 + 1008 == 23_850_960
        for name, shape in {
            "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
            "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
            "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
            "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
            "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
            "Mixed_7a.branch7x7x3_4.bn.running_var": (192,),
            "Mixed_7c.branch3x3_2a.conv.weight": (384, 384, 1, 3),
            "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
        }.items():
            assert shapes[name] == shape

    def test_equals_numpys(self, network):
        # Odd and even sizes at all depths; the network is the same for every size.
        values = np.random.default_rng(1).uniform(-1, 1, (1, 107, 127, 3)).astype(np.float32)
        wanted = ByNumpy(random_state())(values.astype(np.float64))
        found = network.features(values).numpy()
        assert found.shape == wanted.shape == (1, 2048) and (wanted > 0).mean() > 0.5
        assert largest_difference(found, wanted) < 1e-5

    @pytest.mark.parametrize("size", [8, 64, 299, 320])
    def test_images_are_resized_as_tensorflow_1_did(self, size):
        images = random_images(2, size=size)
        place = np.arange(299) * (size / 299)
        low = np.floor(place).astype(int)
        high, part = np.minimum(low + 1, size - 1), place - low
        rows = images[:, low] * (1 - part)[:, None, None] + images[:, high] * part[:, None, None]
        large = rows[:, :, low] * (1 - part)[:, None] + rows[:, :, high] * part[:, None]
        np.testing.assert_allclose(Inception.scaled(images).numpy(), (large - 128) / 128, atol=2e-4)

    def test_images_of_any_size_and_number(self, network, monkeypatch):
        monkeypatch.setattr(inception, "_AT_ONCE", 2)
        images = random_images(3, size=32)
        found = network(images)
        assert found.shape == (3, 2048) and found.dtype == np.float32
        wanted = network.features(Inception.scaled(images[2:])).numpy()
        np.testing.assert_allclose(found[2:], wanted, rtol=1e-4, atol=1e-5)
        assert network(random_images(1, size=20)).shape == (1, 2048)
        assert network(images[:0]).shape == (0, 2048)

    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            (lambda s: s.pop("Mixed_6b.branch1x1.bn.bias"), ("lack", "Mixed_6b.branch1x1.bn.bias")),
            (lambda s: s.update({"Mixed_7c.branch1x1.bn.bias": np.zeros(3)}), ("Mixed_7c.branch1x1", "(3,)", "(320,)")),
        ],
    )
    def test_other_weights_are_refused_in_one_line(self, change, parts):
        state = dict(random_state())
        change(state)
        with pytest.raises(ExtractorError) as caught:
            Inception(state)
        assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


class TestAgainstTorchvision:
    @pytest.fixture(scope="class")
    def theirs(self):
        torch = pytest.importorskip("torch")
        models = pytest.importorskip("torchvision.models")
        network = models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False).eval()
        state = {name: torch.from_numpy(values) for name, values in random_state().items()}
        missing = network.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys
        assert {n for n in missing.missing_keys if "num_batches" not in n} == {"fc.weight", "fc.bias"}
        return torch, network

    def test_equals_it_but_for_the_pools(self, theirs, network):
        torch, reference = theirs
        functional = torch.nn.functional

        def average(x, **how):
            return functional.avg_pool2d(x, count_include_pad=False, **how)

        # Their blocks find their pools in their module; the last block is told from the others by its name.
        found = types.SimpleNamespace(**vars(functional))
        found.avg_pool2d = average
        module = __import__("torchvision.models.inception", fromlist=["F"])
        images = np.concatenate([random_images(2, size=64), random_images(2, size=64, seed=1) // 8 + 100])
        x = torch.from_numpy(Inception.scaled(images).numpy()).permute(0, 3, 1, 2)
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "F", found)
            for name, child in reference.named_children():
                if name in ("AuxLogits", "dropout", "fc"):
                    continue
                if name == "Mixed_7c":
                    found.avg_pool2d = functional.max_pool2d
                x = child(x)
        assert largest_difference(network(images), x.flatten(1).numpy()) < 1e-4


class TestReading:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_reads_what_torch_saves(self, zipped, tmp_path):
        torch = pytest.importorskip("torch")
        state = {name: torch.arange(3.0) + k for k, name in enumerate("ab")}
        torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        read = inception.read_state(tmp_path / "a.pth")
        assert {name: list(values) for name, values in read.items()} == {"a": [0, 1, 2], "b": [1, 2, 3]}

    def test_damaged_file_is_one_line(self, tmp_path):
        pytest.importorskip("torch")
        (tmp_path / "a.pth").write_bytes(b"no\nweights")
        with pytest.raises(ExtractorError, match=r"torch cannot read .*a\.pth") as caught:
            inception.read_state(tmp_path / "a.pth")
        assert "\n" not in str(caught.value)

    def test_without_torch_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch_state.importlib.util, "find_spec", lambda name: None)
        for call in (lambda: inception.read_state(tmp_path / "a.pth"), lambda: find_inception(True, print)):
            with pytest.raises(ExtractorError, match=r"\.pth needs torch, .* pip install 'tfdecouple\[fid\]'$"):
                call()


CONTENT = b"weights" * 1000


@pytest.fixture
def small_file(monkeypatch):
    """Makes a small file the expected one, which needs no torch and gives mean colours."""
    monkeypatch.setattr(inception, "SIZE", len(CONTENT))
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(inception, "require_torch", lambda *_: None)
    monkeypatch.setattr(inception, "open_inception", lambda path: colours)


@pytest.mark.usefixtures("small_file")
class TestName:
    @pytest.mark.parametrize("name", [inception.FILE_NAME, "renamed.bin", "renamed.onnx"])
    def test_is_fid_by_the_checksum(self, name, tmp_path):
        (tmp_path / name).write_bytes(CONTENT)
        opened = open_extractor(tmp_path / name, 8)
        assert opened.is_fid and opened.sha256 == inception.SHA256 and opened.file_name == name
        np.testing.assert_array_equal(opened(random_images(2)), colours(random_images(2)))

    @pytest.mark.parametrize("name", [inception.FILE_NAME, "inception.pt"])
    def test_other_pytorch_files_are_refused(self, name, tmp_path):
        (tmp_path / name).write_bytes(CONTENT[:-1])
        with pytest.raises(ExtractorError, match="only the Inception network of FID is read") as caught:
            open_extractor(tmp_path / name, 8)
        message = str(caught.value)
        assert inception.SHA256 in message and hashlib.sha256(CONTENT[:-1]).hexdigest() in message
        assert "\n" not in message

    @pytest.mark.parametrize("name", ["inception", "inception-2015-12-05.onnx"])
    def test_is_not_fid_by_its_own_name(self, name, tmp_path):
        assert not open_extractor(write_onnx(tmp_path / name), 8).is_fid

    @pytest.mark.usefixtures("eager")
    def test_report_says_fid_and_of_how_many(self, tiny_model, source, tmp_path, monkeypatch):
        (tmp_path / "a.pth").write_bytes(CONTENT)
        report = report_of(tiny_model, source, tmp_path / "a.pth", count=12)
        assert report["name"] == "FID" and report["is_fid"] is True
        assert report["extractor"] == {"file": "a.pth", "sha256": inception.SHA256}
        text = "\n".join(summary(report, "noise"))
        assert text.startswith("FID, 3 features, to 50 test images of noise:\n  12 samples")
        assert "not FID" not in text and "the Inception network of 2015-12-05" in text
        (warning,) = report["warnings"]
        assert "50,000 samples" in warning and "that of 12 is higher" in warning

        monkeypatch.setattr("tfdecouple.metrics.frechet.FID_SAMPLES", 12)
        assert not report_of(tiny_model, source, tmp_path / "a.pth", count=12)["warnings"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tfdecouple"


@pytest.fixture
def serve(monkeypatch):
    """Returns a function that makes a server's answer the file's address."""
    servers = []

    def start(content, length=None, status=200):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", str(len(content) if length is None else length))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(inception, "URL", f"http://127.0.0.1:{server.server_port}/{inception.FILE_NAME}")
        return server

    monkeypatch.setenv("no_proxy", "*")
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def refusal(download=True):
    with pytest.raises(ExtractorError) as caught:
        find_inception(download, lambda line: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("small_file")
class TestFile:
    def test_place_is_in_the_cache_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        for value in ("", "relative/path"):
            monkeypatch.setenv("XDG_CACHE_HOME", value)
            assert cached_path() == tmp_path / ".cache" / "tfdecouple" / inception.FILE_NAME
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
        assert cached_path() == tmp_path / "other" / "tfdecouple" / inception.FILE_NAME

    def test_file_that_is_there_is_taken(self, cache):
        cache.mkdir(parents=True)
        (cache / inception.FILE_NAME).write_bytes(CONTENT)
        for download in (False, True):
            assert find_inception(download, None) == cache / inception.FILE_NAME

    def test_missing_file_is_refused_with_what_to_do(self, cache):
        message = refusal(download=False)
        for part in (str(cache), "--download", inception.URL, inception.SHA256):
            assert part in message
        assert not cache.exists()

    def test_another_file_in_its_place_is_refused(self, cache):
        cache.mkdir(parents=True)
        (cache / inception.FILE_NAME).write_bytes(b"other")
        message = refusal(download=False)
        assert "is not the Inception network" in message and hashlib.sha256(b"other").hexdigest() in message

    def test_download(self, cache, serve):
        serve(CONTENT)
        told = []
        for _ in range(2):
            path = find_inception(True, told.append)
            assert path.read_bytes() == CONTENT and list(cache.iterdir()) == [path]
        assert len(told) == 1 and str(path) in told[0]

    def test_download_takes_the_place_of_another_file(self, cache, serve):
        cache.mkdir(parents=True)
        (cache / inception.FILE_NAME).write_bytes(b"other")
        serve(CONTENT)
        assert find_inception(True, print).read_bytes() == CONTENT

    @pytest.mark.parametrize(
        ("answer", "part"),
        [
            ({"content": CONTENT[::-1]}, "gave another file"),
            ({"content": CONTENT + b"x"}, "gave another file"),
            ({"content": CONTENT[:500]}, "ended after 500 of 7,000 bytes"),
            ({"content": b"no such file", "status": 404}, "404"),
        ],
    )
    def test_download_of_something_else_leaves_nothing(self, cache, serve, answer, part):
        serve(**answer)
        assert part in refusal()
        assert list(cache.iterdir()) == []

    def test_download_cut_short_leaves_nothing(self, cache, serve):
        serve(CONTENT[:500], length=len(CONTENT))
        # What the library makes of it differs between versions of Python.
        assert "500" in refusal()
        assert list(cache.iterdir()) == []

    def test_interrupted_download_leaves_nothing(self, cache, monkeypatch):
        class Answer:
            chunks = iter([CONTENT[:500]])

            def __enter__(self):
                return self

            def __exit__(self, *error):
                pass

            def read(self, size):
                for chunk in self.chunks:
                    return chunk
                (beside,) = cache.iterdir()
                assert beside.name != inception.FILE_NAME
                raise KeyboardInterrupt

        monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Answer())
        with pytest.raises(KeyboardInterrupt):
            find_inception(True, print)
        assert list(cache.iterdir()) == []

    def test_no_network_is_one_line(self, cache, serve):
        server = serve(CONTENT)
        server.shutdown()
        server.server_close()
        message = refusal()
        assert "cannot download" in message and inception.URL in message and str(cache) in message

    def test_folder_that_cannot_be_made_is_one_line(self, cache, serve):
        serve(CONTENT)
        cache.parent.write_text("no folder")
        assert "cannot download" in refusal()


def test_address_size_and_checksum_are_those_published():
    assert inception.URL.startswith("https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/")
    assert inception.SHA256.startswith("6726825d") and len(inception.SHA256) == 64
    assert "6726825d" in inception.FILE_NAME and inception.SIZE == 95_628_359
