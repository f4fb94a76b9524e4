"""Weights on the Hugging Face Hub, through the Hub's own client, against a server on this machine."""

import contextlib
import functools
import hashlib
import http.server
import json
import pathlib
import re
import shutil
import threading
import time
import urllib.parse
from types import SimpleNamespace

import pytest
from helpers.commands import command, refuse
from helpers.refusals import message_of

from tfdecouple.errors import RunError, UntrustedError
from tfdecouple.runs import pretrained
from tfdecouple.runs.opened_run import hash_weights, load_model
from tfdecouple.runs.pretrained import download_weights

pytest.importorskip("huggingface_hub")


class Hub:
    """A server's `branches` {repository: {branch: commit}}, `commits` {commit: {path: content}}, requests `asked`."""

    def __init__(self, url):
        self.url, self.branches, self.commits, self.private, self.asked = url, {}, {}, set(), []

    def find_commit(self, repository, revision):
        return self.branches.get(repository, {}).get(revision, revision)

    def files(self, repository, revision="main"):
        return self.commits.get(self.find_commit(repository, revision))

    def create_repo(self, repository, private, exist_ok):
        self.commit(repository, {".gitattributes": b""})
        self.private |= {repository} if private else set()

    def create_commit(self, repository, operations, commit_message, revision):
        files = {made.path_in_repo: pathlib.Path(made.path_or_fileobj).read_bytes() for made in operations}
        return SimpleNamespace(oid=self.commit(repository, files, revision or "main"))

    def commit(self, repository, files, branch="main"):
        """Makes a commit that holds exactly these files, on a branch; returns the commit's name."""
        name = hashlib.sha1(repr((repository, branch, sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[name] = dict(files)
        self.branches.setdefault(repository, {})[branch] = name
        return name


class HubHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self):
        return self.server.hub

    def log_message(self, *arguments):
        pass

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.hub.asked.append(self.path)
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", urllib.parse.urlparse(self.path).path)
        repository, revision, name = map(urllib.parse.unquote, match.groups())
        files, commit = self.hub.files(repository, revision) or {}, self.hub.find_commit(repository, revision)
        if name not in files:
            return self.answer(404, X_Repo_Commit=commit)
        return self.answer(200, files[name], X_Repo_Commit=commit)


@contextlib.contextmanager
def run_hub():
    """Yields the `Hub` of a server on 127.0.0.1 that runs in a thread inside the context."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as server:
        server.daemon_threads = True
        # A client that leaves an answer is no fault of the server.
        server.handle_error = lambda *_: None
        server.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.hub
        finally:
            server.shutdown()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub, and a client that knows no other and stores what it fetches in a folder of its own."""
    from huggingface_hub import constants

    with run_hub() as server:
        # As HF_ENDPOINT and HF_HOME do before the client is imported.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "store"))
        monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
        download_weights.cache_clear()
        yield server


def list_files(folder):
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def weights(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "weights"
    command("publish", "--run", tiny_run, "--to", folder, "--licence", "mit")
    return {name: path.read_bytes() for name, path in list_files(folder).items()}


def test_published_weights_are_loaded_from_the_hub(hub, tiny_run, capsys, monkeypatch):
    # The client's own protocol of uploads is not the subject.
    for name in ("create_repo", "create_commit"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", functools.partial(getattr(hub, name)))
    command("publish", "--run", tiny_run, "--to", "hf://ada/faces", "--licence", "mit", "--private")
    commit = hub.branches["ada/faces"]["main"]
    assert f"load_model('hf://ada/faces@{commit}')" in capsys.readouterr().out
    assert hub.private == {"ada/faces"}
    files = hub.files("ada/faces")
    assert b'license: "mit"' in files["README.md"] and b'load_model("hf://ada/faces")' in files["README.md"]
    addresses = (tiny_run, f"hf://ada/faces@{commit}", "hf://ada/faces@main")
    assert len({hash_weights(load_model(address)) for address in addresses}) == 1


def test_hub_commit_pins_weights_and_needs_no_network_once_cached(hub, weights):
    first = hub.commit("ada/faces", weights)
    assert download_weights("hf://ada/faces").name == first
    second = hub.commit("ada/faces", {**weights, "more.txt": b"x"})
    download_weights.cache_clear()
    assert download_weights("hf://ada/faces").name == second
    assert download_weights(f"hf://ada/faces@{first}").name == first
    asked = len(hub.asked)
    download_weights.cache_clear()
    assert (download_weights(f"hf://ada/faces@{first}") / "config.json").is_file() and len(hub.asked) == asked


def test_download_fetches_only_config_and_weights(hub, weights):
    hub.commit("ada/faces", {**weights, "evil.py": b"raise SystemExit", "metrics.jsonl": b"{}", "model.pkl": b"x"})
    fetched = set(list_files(download_weights("hf://ada/faces")))
    assert fetched == {name for name in weights if name not in ("README.md", "metrics.jsonl")}


def change_manifest(weights, **files):
    """Returns the files `weights` with another manifest, which also names `files`, {name: bytes}."""
    values = json.loads(weights["manifest.json"])
    values["files"] |= {name: {"bytes": size, "sha256": "0"} for name, size in files.items()}
    return {**weights, "manifest.json": json.dumps(values).encode()}


def without(weights, part):
    return {name: content for name, content in weights.items() if part not in name}


DATA = "checkpoints/best-000000002.safetensors"


@pytest.mark.parametrize(
    ("made", "error", "said"),
    [
        (lambda w: {**w, "config.json": w["config.json"].replace(b"8", b"9")}, RunError, "config.json of .* differs"),
        (lambda w: {**w, "config.json": w["config.json"] + b" "}, RunError, "config.json of .* has more than the"),
        (lambda w: without(w, "safetensors"), RunError, "hf://ada/faces: 404"),
        (lambda w: without(w, "manifest.json"), RunError, "hf://ada/faces: 404"),
        (lambda w: change_manifest(w, **{"../x": 1}), UntrustedError, "which no model needs"),
        (lambda w: change_manifest(w, **{DATA: 10**12}), UntrustedError, "1,000,0.* bytes"),
        (lambda w: change_manifest(w, **{DATA: 2**63 - 1}), UntrustedError, "9,223,3.* bytes"),
    ],
)
def test_untrusted_repository_is_refused_in_one_line(hub, weights, made, error, said):
    hub.commit("ada/faces", made(weights))
    assert re.search(said, message_of(error, lambda: download_weights("hf://ada/faces")))
    assert error is RunError or [path.rpartition("/")[2] for path in hub.asked] == ["manifest.json"]


@pytest.fixture(params=["manifest.json", "config.json"])
def lied(hub, weights, request, monkeypatch):
    """A function that lets `answer(handler)` answer for one file instead of the Hub; returns the one line of error."""

    def lie(answer):
        honest = HubHandler.do_GET

        def answer_or_lie(handler):
            return answer(handler) if handler.path.endswith(request.param) else honest(handler)

        monkeypatch.setattr(HubHandler, "do_GET", answer_or_lie)
        hub.commit("ada/faces", weights)
        return message_of(RunError, lambda: download_weights("hf://ada/faces"))

    return lie


def start_answer(handler, status=200, **headers):
    handler.send_response(status)
    for name, value in {"X-Repo-Commit": handler.hub.branches["ada/faces"]["main"], **headers}.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()


def test_download_stops_at_the_size_of_the_manifest(lied, tmp_path):
    sent = []

    def pour(handler):
        start_answer(handler, Connection="close")
        handler.close_connection = True
        with contextlib.suppress(OSError):
            while sum(sent) < 2**28:
                sent.append(handler.wfile.write(bytes(2**20)))

    assert "bytes that it should have" in lied(pour)
    assert sum(sent) < 2**27
    assert not any(path.stat().st_size > 2**20 for path in list_files(tmp_path).values())


@pytest.mark.parametrize("when", ["at once", "within the headers", "within the body"])
def test_download_stops_after_its_time_limit(lied, monkeypatch, when, tmp_path):
    monkeypatch.setattr(pretrained, "_PATIENCE", 1)
    ended = threading.Event()

    def drip(handler):
        if when == "within the body":
            start_answer(handler, Content_Length=900)
        with contextlib.suppress(OSError):
            if when == "within the headers":
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not ended.wait(0.1):
                if when != "at once":
                    handler.wfile.write(b" ")
                    handler.wfile.flush()

    assert "is not complete" in lied(drip)
    ended.set()
    assert not [path for path in list_files(tmp_path) if path.endswith(".tmp")]


def test_download_that_does_not_fit_on_the_disk_is_refused_before_it_begins(hub, weights, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 99, 99))
    hub.commit("ada/faces", weights)
    assert "99 are free in" in message_of(RunError, lambda: download_weights("hf://ada/faces"))
    assert len(hub.asked) == 1


@pytest.mark.parametrize("commit", ["../../../../outside", "/outside", "A" * 40])
def test_commit_in_an_answer_cannot_choose_a_path(hub, weights, tmp_path, monkeypatch, commit):
    monkeypatch.setattr(hub, "find_commit", lambda repository, revision: commit)
    hub.commits[commit] = weights
    assert "the answer names no commit" in message_of(RunError, lambda: download_weights("hf://ada/faces"))
    assert not list_files(tmp_path)


def test_redirect_sends_no_token_to_another_server(hub, weights, monkeypatch):
    tokens = {}
    with run_hub() as elsewhere:
        elsewhere.branches, elsewhere.commits = hub.branches, hub.commits
        commit, honest = hub.commit("ada/faces", weights), HubHandler.do_GET

        def redirect(handler):
            tokens.setdefault(handler.hub.url, set()).add(handler.headers.get("Authorization"))
            if handler.hub is elsewhere or not handler.path.endswith(".safetensors"):
                return honest(handler)
            return start_answer(handler, 302, Location=elsewhere.url + handler.path, Content_Length=0)

        monkeypatch.setattr(HubHandler, "do_GET", redirect)
        assert download_weights("hf://ada/faces").name == commit
    assert tokens == {hub.url: {"Bearer hf_of_this_test"}, elsewhere.url: {None}}


def test_offline_branch_is_its_last_download_and_other_weights_give_one_error_line(hub, weights, monkeypatch):
    from huggingface_hub import constants

    folder = (hub.commit("ada/faces", weights), download_weights("hf://ada/faces"))[1]
    hub.commit("ada/known", weights)
    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    # The client tries again and again.
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    download_weights.cache_clear()
    assert download_weights("hf://ada/faces") == folder
    assert message_of(RunError, lambda: download_weights("hf://ada/known")).startswith("hf://ada/known: ")


@pytest.mark.parametrize("address", ["hf://ada/nobody", "hf://ada/faces@nothing"])
def test_missing_repository_gives_one_error_line(hub, weights, capsys, address):
    hub.commit("ada/faces", weights)
    assert refuse(capsys, "sample", "--run", address).startswith(f"error: {address}: 404")
