"""Lets this process ask nothing of the outside: no connection, no name, no other program, no pickle.

    python tests/support/outside.py COMMAND ...

runs `iteris COMMAND ...` so, and writes a last line of JSON: what it asked for. The exit code is the
command's.
"""

import json
import sys

REFUSED = {
    *(f"socket.{name}" for name in ("connect", "sendto", "sendmsg")),
    *(f"socket.{name}" for name in ("getaddrinfo", "getnameinfo")),
    *(f"socket.{name}" for name in ("gethostbyname", "gethostbyaddr")),
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"),
    *("subprocess.Popen", "pickle.find_class", "urllib.Request"),
}


def refuse() -> list[str]:
    """Refuse from now on, and return a list that will hold what was asked for."""
    asked: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in REFUSED:
            asked.append(f"{event} {arguments[:2]!r}")
            raise PermissionError(f"{event} is refused here")

    sys.addaudithook(hook)
    return asked


def main() -> None:
    # what libraries do when they are imported is theirs
    from iteris_core.cli.main import app

    asked = refuse()
    try:
        code = app(sys.argv[1:], standalone_mode=False)
    finally:
        print(json.dumps(asked))
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
