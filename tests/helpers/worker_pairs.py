"""Workers of one distributed training run, either as threads of the test's process or as two processes."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from helpers.forked import forked_programs
from helpers.places import PATIENCE, ROOT, user_environment
from tfdecouple.storage.files import write_json
from tfdecouple.training.workers import Workers


def choose_addresses(count=2):
    """Returns addresses (host:port) on this machine for `count` workers; their ports are free, and differ."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{server.getsockname()[1]}" for server in opened]


class WorkerThreads:
    """Training workers (`Workers` objects) that run in threads of one process, and add up arrays without a network."""

    def __init__(self, count=2):
        self.workers = [Workers(count, rank, lambda data, rank=rank: self._sum(rank, data)) for rank in range(count)]
        self._barrier = threading.Barrier(count, timeout=PATIENCE)
        self._data = [None] * count

    def run(self, act):
        """Calls `act(worker)` for each training worker, in its own thread; returns a list of results or exceptions."""

        def call(workers):
            try:
                return act(workers)
            except Exception as error:
                return error

        with ThreadPoolExecutor(len(self.workers)) as pool:
            return list(pool.map(call, self.workers))

    def _sum(self, rank, data):
        self._data[rank] = data
        self._barrier.wait()
        total = np.sum(self._data, 0).astype(np.uint8)
        self._barrier.wait()
        return total


class WorkerProcesses:
    """Two processes on this machine that train one model together: workers of `train.py` with one run folder."""

    def __init__(self, folder, config):
        self.run = folder / "run"
        self.folder = folder
        write_json(folder / "config.json", config.to_dict())
        self.processes = []

    def start(self, *arguments, addresses=None, ranks=(0, 1)):
        addresses = addresses or choose_addresses()
        command = [sys.executable, "train.py", "--config", str(self.folder / "config.json"), "--workdir", str(self.run)]
        for index in ranks:
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = {**user_environment(), "TF_CONFIG": json.dumps(task)}
            options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            with forked_programs():
                process = subprocess.Popen([*command, *map(str, arguments)], cwd=ROOT, env=environment, **options)
            self.processes.append(process)

    def end(self):
        """Waits until both worker processes end; returns a list of two tuples (exit status, stdout, stderr)."""
        try:
            texts = [process.communicate(timeout=PATIENCE) for process in self.processes]
            return [(process.returncode, *both) for process, both in zip(self.processes, texts, strict=True)]
        finally:
            self.kill()

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []

    def saved(self):
        return sorted(int(path.stem[5:]) for path in self.run.glob("checkpoints/step-*.safetensors"))

    def wait_for_checkpoint(self, beyond=0):
        """Waits until the workers have saved a checkpoint of a step after `beyond`; returns the latest saved step."""
        end = time.monotonic() + PATIENCE
        while max(self.saved(), default=0) <= beyond:
            assert all(process.poll() is None for process in self.processes), [p.communicate() for p in self.processes]
            assert time.monotonic() < end
            time.sleep(0.1)
        return max(self.saved())
