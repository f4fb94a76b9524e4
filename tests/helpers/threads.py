"""Workers of one training run as threads of one process, for tests."""

from __future__ import annotations

import threading

import numpy as np

from helpers.places import PATIENCE
from tfdecouple.training.workers import Workers


class Together:
    """Workers that run as threads of this process and add up through shared memory instead of a network."""

    def __init__(self, count=2):
        self.workers = [Workers(count, rank, lambda data, rank=rank: self.sum(rank, data)) for rank in range(count)]
        self.barrier = threading.Barrier(count, timeout=PATIENCE)
        self.data = [None] * count

    def run(self, act):
        """Returns for each worker the result of `act(workers)`, called in a thread, or the exception it raised."""
        results = [None] * len(self.workers)

        def thread(workers):
            try:
                results[workers.rank] = act(workers)
            except Exception as error:
                results[workers.rank] = error

        threads = [threading.Thread(target=thread, args=(workers,)) for workers in self.workers]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return results

    def sum(self, rank, data):
        self.data[rank] = data
        self.barrier.wait()
        total = np.sum(self.data, 0).astype(np.uint8)
        self.barrier.wait()
        return total
