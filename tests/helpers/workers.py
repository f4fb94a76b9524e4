"""Two workers of one training run as processes on this machine, for tests."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time

from helpers.forked import forked_programs
from helpers.places import PATIENCE, ROOT, user_environment
from tfdecouple.storage.files import write_json


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Pair:
    """Two worker processes that run `train.py` with one config and one run folder."""

    def __init__(self, folder, config):
        self.run = folder / "run"
        self.folder = folder
        write_json(folder / "config.json", config.to_dict())
        self.processes = []

    def start(self, *arguments):
        addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
        command = [sys.executable, "train.py", "--config", str(self.folder / "config.json"), "--workdir", str(self.run)]
        for index in (0, 1):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = {**user_environment(), "TF_CONFIG": json.dumps(task)}
            options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            with forked_programs():
                process = subprocess.Popen([*command, *map(str, arguments)], cwd=ROOT, env=environment, **options)
            self.processes.append(process)

    def end(self):
        """Returns status, standard output and standard error of each worker after both have ended."""
        try:
            said = [process.communicate(timeout=PATIENCE) for process in self.processes]
            return [(process.returncode, *texts) for process, texts in zip(self.processes, said, strict=True)]
        finally:
            self.kill()

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []

    def saved(self):
        return sorted(int(path.stem[5:]) for path in self.run.glob("checkpoints/step-*.index"))

    def wait_for_checkpoint(self, beyond=0):
        """Returns the last saved step after waiting until it is larger than `beyond`."""
        begun = time.monotonic()
        while max(self.saved(), default=0) <= beyond:
            assert all(process.poll() is None for process in self.processes), [p.communicate() for p in self.processes]
            assert time.monotonic() < begun + PATIENCE
            time.sleep(0.1)
        return max(self.saved())
