"""What may not be asked of the outside is refused; `test_diffusers_cli.py` has a command that asks nothing."""

import os
import subprocess
import sys
from pathlib import Path

import outside

ASKS = """
import outside, pickle, socket, subprocess, sys, urllib.request
asked = outside.refuse()
for ask in (
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: socket.getaddrinfo("localhost", 80),
    lambda: urllib.request.urlopen("http://127.0.0.1:9"),
    lambda: subprocess.run([sys.executable, "--version"]),
    lambda: pickle.loads(b"cbuiltins\\nlen\\n."),
):
    try:
        ask()
    except OSError:
        pass
    else:
        sys.exit("it was allowed")
print(len(asked))
"""


def test_what_a_process_asks_is_refused_and_told():
    environment = {**os.environ, "PYTHONPATH": str(Path(outside.__file__).parent)}
    given = {"capture_output": True, "text": True, "env": environment}
    done = subprocess.run([sys.executable, "-c", ASKS], **given)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
