"""Measurements that go wrong in each way, for processes of `tfdecouple.doctor.apart`. They need no TensorFlow."""

import os
import pathlib
import signal
import subprocess
import sys
import time


def well(number):
    """Says much on standard output, and yields a number and its double."""
    print("chatter\n" * 1000)
    yield {"doing": "the double"}
    yield {"number": number}
    yield {"number": 2 * number}


def fails_late():
    """Yields something, then fails."""
    yield {"number": 1}
    raise ValueError("no such\nkernel")


def hangs(folder):
    """Starts a process, writes its number into the folder, and hangs with it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1800)"])
    pathlib.Path(folder, "child").write_text(str(child.pid))
    yield {"doing": "nothing"}
    time.sleep(1800)


def wants_memory():
    """Asks for more memory than there is."""
    yield {"doing": "a large array"}
    raise MemoryError("2**60 bytes")


def is_killed():
    """Ends as the kernel ends what takes too much memory."""
    yield {"number": 1}
    os.kill(os.getpid(), signal.SIGKILL)


def crashes():
    """Ends as native code ends that reads what is not its own."""
    yield {"doing": "something native"}
    os.kill(os.getpid(), signal.SIGSEGV)


def tells_process():
    """Yields the number of its process."""
    yield {"number": os.getpid()}


def tells_environment(variable):
    """Yields a variable, and the folder that it stands in."""
    yield {"value": os.environ.get(variable), "folder": os.getcwd()}
