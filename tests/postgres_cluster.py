"""A PostgreSQL server of its own for tests, from what Debian's `postgresql` installs."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pg8000.dbapi
import pytest
import trustme

USER = "actserve"
SYSTEM_USER = "postgres"
"""Of the operating system; PostgreSQL refuses to run as root."""
START_S = 30.0


def programs() -> Path | None:
    """The folder of the newest PostgreSQL that is installed."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: int(each.parent.name)
    )
    return found[-1] if found else None


class Cluster:
    """A server on a loopback port, whose files are gone when it is closed."""

    def __init__(self, at: Path) -> None:
        self._at = at
        self._as = SYSTEM_USER if os.geteuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="actserve-postgres-"))
        self.password = f"secret-{secrets.token_hex(8)}"
        if self._as:
            shutil.chown(self._folder, self._as)
        password = self._folder / "password"
        password.write_text(self.password)
        if self._as:
            shutil.chown(password, self._as)
        self._run(
            "initdb",
            *("--pgdata", str(self._folder / "data"), "--username", USER, "--no-sync"),
            # Names are to be in the same order in every language.
            *("--auth", "scram-sha-256", "--pwfile", str(password), "--encoding", "UTF8"),
            *("--locale", "C.UTF-8"),
        )
        self.authority = trustme.CA()
        """Of its certificate, which is for localhost."""
        certificate = self.authority.issue_cert("localhost")
        self._put("server.crt", certificate.cert_chain_pems[0].bytes())
        self._put("server.key", certificate.private_key_pem.bytes())
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it takes connections."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._folder),
            "fsync": "off",  # What is tested here dies by itself, and never with the machine.
            "max_connections": "50",
            "ssl": "on",
        }
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._at / "postgres", "-D", self._folder / "data", *flags],
                stdout=log,
                stderr=log,
                user=self._as,
                cwd=self._folder,
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                return self._execute("postgres", "SELECT 1")
            except Exception:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self._folder / "log").read_text()) from None
                time.sleep(0.05)

    def stop(self) -> None:
        """At once, whoever is connected."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(START_S)
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new, empty database."""
        name = f"test_{secrets.token_hex(6)}"
        self._execute("postgres", f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            if self._process is not None:
                self._execute("postgres", f"DROP DATABASE {name} WITH (FORCE)")

    def url(self, database: str) -> str:
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def _put(self, name: str, content: bytes) -> None:
        """A file among its data, which only it may read."""
        path = self._folder / "data" / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        if self._as:
            shutil.chown(path, self._as)

    def _execute(self, database: str, statement: str) -> None:
        connection = pg8000.dbapi.connect(
            USER,
            host="127.0.0.1",
            port=self.port,
            database=database,
            password=self.password,
            ssl_context=False,
            timeout=START_S,
        )
        with closing(connection):
            connection.autocommit = True
            connection.cursor().execute(statement)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._at / program, *arguments],
            capture_output=True,
            check=False,
            user=self._as,
            cwd=self._folder,
        )
        assert done.returncode == 0, done.stderr.decode()


def cluster() -> Iterator[Cluster]:
    """A running one. Skips where PostgreSQL is not installed, but on CI, which installs it."""
    at = programs()
    if at is None:
        if os.environ.get("CI") == "true":
            pytest.fail("PostgreSQL is not installed; run `make services`")
        pytest.skip("PostgreSQL is not installed; `make services` installs it")
    made = Cluster(at)
    try:
        made.start()
        yield made
    finally:
        made.close()
