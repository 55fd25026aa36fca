"""Install every package from its file into an empty project, and run its sample there.

    python scripts/try_packages.py              what `make packages` has made
    python scripts/try_packages.py rust java    of these

The sample is the example `fetch`. It is run against a server with a made-up model, and must print
what it prints from the sources of the Python client. Exits with 1 if anything failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.docs.made_up import made_up_server  # noqa: E402

PACKAGES = ROOT / "build/packages"


@dataclass(frozen=True)
class Trial:
    """How to install a package into an empty folder, and the command of its sample there."""

    tool: str
    install: Callable[[Path], list[str]]


def the_one(pattern: str) -> Path:
    found = sorted(PACKAGES.glob(pattern))
    if len(found) != 1:
        raise SystemExit(
            f"{PACKAGES.relative_to(ROOT)} has {len(found)} files {pattern}, not one; "
            "run `make packages`"
        )
    return found[0]


def run(folder: Path, *command: str | Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")


def python(folder: Path) -> list[str]:
    uv = ROOT / ".venv/bin/uv"
    run(folder, uv, "venv", "--quiet", "--python", sys.executable, "env")
    wheel = the_one("actserve-*.whl")
    run(folder, uv, "pip", "install", "--quiet", "--python", "env/bin/python", wheel)
    shutil.copy(ROOT / "client/python/examples/fetch.py", folder / "sample.py")
    return ["env/bin/python", "sample.py"]


def go(folder: Path) -> list[str]:
    with zipfile.ZipFile(the_one("*go*.zip")) as archive:
        archive.extractall(folder / "module")
    # In the archive the module is below its path and version, as in a module cache.
    module = next((folder / "module").rglob("go.mod")).parent
    project = folder / "project"
    project.mkdir()
    shutil.copy(ROOT / "client/go/examples/fetch/main.go", project / "main.go")
    name = "github.com/actserve/actserve/client/go"
    run(project, "go", "mod", "init", "example.com/sample")
    run(project, "go", "mod", "edit", "-replace", f"{name}={module}")
    run(project, "go", "mod", "tidy")
    run(project, "go", "build", "-o", "sample", ".")
    return ["project/sample"]


def typescript(folder: Path) -> list[str]:
    (folder / "package.json").write_text('{"name": "sample", "private": true, "type": "module"}')
    run(folder, "npm", "install", "--no-audit", "--no-fund", the_one("actserve-client-*.tgz"))
    shutil.copy(ROOT / "client/typescript/build/examples/fetch.js", folder / "sample.js")
    return ["node", "sample.js"]


def rust(folder: Path) -> list[str]:
    crate = the_one("actserve-*.crate")
    run(folder, "tar", "xf", crate)
    (folder / "src").mkdir()
    shutil.copy(ROOT / "client/rust/examples/fetch.rs", folder / "src/main.rs")
    # What the example needs besides the crate is what the crate itself is tested with.
    (folder / "Cargo.toml").write_text(
        '[package]\nname = "sample"\nversion = "0.0.0"\nedition = "2021"\n\n[dependencies]\n'
        f'actserve = {{ path = "{crate.stem}" }}\n'
        'tokio = { version = "1", features = ["macros", "rt-multi-thread"] }\n'
        'serde_json = "1"\n\n[workspace]\n'
    )
    run(folder, "cargo", "build", "--quiet")
    return ["target/debug/sample"]


def java(folder: Path) -> list[str]:
    repository = f"-Dmaven.repo.local={Path.home() / '.m2/repository'}"
    pom = the_one("actserve-*.pom")
    jar = PACKAGES / f"{pom.stem}.jar"
    version = pom.stem.removeprefix("actserve-")
    install = ("install:install-file", f"-Dfile={jar}", f"-DpomFile={pom}")
    run(folder, "mvn", "-q", repository, *install)
    shutil.copy(ROOT / "client/java/examples/Fetch.java", folder / "Fetch.java")
    (folder / "pom.xml").write_text(
        "<project><modelVersion>4.0.0</modelVersion><groupId>sample</groupId>"
        "<artifactId>sample</artifactId><version>1</version><dependencies><dependency>"
        f"<groupId>dev.actserve</groupId><artifactId>actserve</artifactId><version>{version}"
        "</version></dependency></dependencies></project>"
    )
    run(folder, "mvn", "-q", repository, "dependency:copy-dependencies", "-DoutputDirectory=lib")
    run(folder, "javac", "-cp", "lib/*", "-d", "classes", "Fetch.java")
    return ["java", "-cp", "lib/*:classes", "Fetch"]


TRIALS = {
    "python": Trial(sys.executable, python),
    "go": Trial("go", go),
    "typescript": Trial("npm", typescript),
    "rust": Trial("cargo", rust),
    "java": Trial("mvn", java),
}


def printed(folder: Path, command: list[str], address: str) -> str:
    done = subprocess.run(
        [*command, address], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    names = sys.argv[1:] or list(TRIALS)
    if unknown := set(names) - set(TRIALS):
        raise SystemExit(f"there is no language {', '.join(unknown)}; use {', '.join(TRIALS)}")
    failed = False
    with made_up_server() as address:
        example = str(ROOT / "client/python/examples/fetch.py")
        expected = printed(ROOT, [sys.executable, example], address)
        for name in names:
            if shutil.which(TRIALS[name].tool) is None:
                print(f"{name}: not tried, {TRIALS[name].tool} is not on PATH")
                continue
            started = time.monotonic()
            # Without what a project in a folder above would bring.
            with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as scratch:
                command = TRIALS[name].install(Path(scratch))
                got = printed(Path(scratch), command, address)
            same = got == expected
            failed |= not same
            seconds = time.monotonic() - started
            print(f"{name}: {'ok' if same else 'prints something else:' + got} ({seconds:.0f} s)")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
