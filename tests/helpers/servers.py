"""Servers that are started as Python programs on this machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

from helpers.places import PATIENCE


@contextlib.contextmanager
def serve(module, *arguments, python=sys.executable):
    """Runs `python -m module` with arguments in which {port} is a free port; yields "127.0.0.1:PORT"."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [python, "-m", module, *(str(text).replace("{port}", str(port)) for text in arguments)]
    # Beam's worker pool starts the first `python` of PATH.
    environment = {**os.environ, "PATH": f"{os.path.dirname(python)}:{os.environ['PATH']}"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    begun = time.monotonic()
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None and time.monotonic() < begun + PATIENCE
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
