"""Make a release: every package of one version, with notes, checksums and a signature of them.

    python scripts/release.py 0.2.0 --key ~/.ssh/id_ed25519    into build/release/0.2.0
    python scripts/release.py 0.2.0 --dry-run                  signed by a key made up for it

A dry run takes a tree as it is, the changelog's [Unreleased] for notes, and `--parts` for some of
the packages. A release takes all of them, of a committed tree, whose changelog has a section of the
version. Publishing is a step of its own: scripts/publish.sh.

OpenSSH signs: `ssh-keygen -Y` is on every machine that has git, needs no network and no key server,
takes keys on hardware (ed25519-sk), and checks a signature against a file of who may sign
(`allowed_signers`), which is in this repository.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts import packages  # noqa: E402
from scripts.accept_chart import NoHelm  # noqa: E402
from scripts.version import the_version  # noqa: E402

RELEASES = ROOT / "build/release"
SIGNERS = ROOT / "allowed_signers"
"""Who may sign a release: a line for each, `release@actserve ssh-ed25519 AAAA...`."""
IDENTITY = "release@actserve"
NAMESPACE = "actserve-release"
"""What a signature is for, so that one of something else does not count."""
SUMS = "SHA256SUMS"
COMMIT = "COMMIT"
"""What the release was made of: signed as the files are, and what they leave out comes from it."""


class NotReady(Exception):
    """A release cannot be made of this; the message says what to do first."""


def check_version(version: str) -> None:
    if version != the_version():
        raise NotReady(
            f"the packages have version {the_version()}, not {version}; run "
            f"`make version VERSION={version}` and commit what it changes"
        )


def check_tree() -> None:
    """That what is built is what a commit holds. Raises `NotReady`, also where git cannot tell."""
    done = _output("git", "status", "--porcelain", "--untracked-files=all")
    if done:
        raise NotReady(f"the tree has changes that are not committed; commit them:\n{done}")


def head() -> str:
    """The commit that is checked out. Raises `NotReady` where there is none."""
    return _output("git", "rev-parse", "HEAD")


def check_key(key: Path, signers: Path) -> None:
    """That there is what signs, and who may sign, before minutes of building."""
    if not key.is_file():
        raise NotReady(f"there is no key {key}; name a private key of OpenSSH, or make one")
    if not signers.is_file():
        raise NotReady(
            f"there is no {signers.name} here, which says who may sign a release; commit it with a "
            f"line `{IDENTITY} <public key>`"
        )


def notes(version: str, changelog: str) -> str:
    """The section of a version. Raises `NotReady` where there is none, or nothing in it."""
    found = re.search(
        rf"^## \[{re.escape(version)}\].*?\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    text = found[1].strip() if found else ""
    if not text:
        raise NotReady(
            f"CHANGELOG.md says nothing of {version}; name the section [Unreleased] "
            f"[{version}], with its day, and begin a new one"
        )
    return f"{text}\n"


def write_sums(folder: Path) -> None:
    """Checksums of all files there, as `sha256sum --check` reads them."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.name not in {SUMS, f"{SUMS}.sig"}
    ]
    (folder / SUMS).write_text("".join(lines))


def sign(folder: Path, key: Path) -> None:
    """Signs the checksums, and so all files. OpenSSH asks for the key's passphrase or touch."""
    signature = folder / f"{SUMS}.sig"
    signature.unlink(missing_ok=True)
    done = subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-f", key, "-n", NAMESPACE, folder / SUMS],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NotReady(f"ssh-keygen cannot sign with {key}: {done.stderr.strip()}")


def verify(folder: Path, signers: Path) -> None:
    """That the signature is of somebody who may sign. Raises `NotReady`."""
    who = ("-I", IDENTITY, "-f", signers, "-s", folder / f"{SUMS}.sig")
    done = subprocess.run(
        ["ssh-keygen", "-Y", "verify", "-n", NAMESPACE, *who],
        input=(folder / SUMS).read_text(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NotReady(
            f"the signature is of nobody in {signers.name}; add the line `{IDENTITY} "
            f"<public key>` and commit it: {(done.stdout + done.stderr).strip()}"
        )


def made_up_key(folder: Path) -> tuple[Path, Path]:
    """A key for a dry run, and the file that says that it may sign."""
    key, signers = folder / "key", folder / "allowed_signers"
    _output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "dry run", "-f", str(key))
    signers.write_text(f"{IDENTITY} {key.with_suffix('.pub').read_text()}")
    return key, signers


def make(
    version: str, *, commit: str, text: str, parts: list[str], key: Path, signers: Path
) -> Path:
    """Builds, writes commit, notes and checksums, signs, and checks what came of it."""
    folder = RELEASES / version
    packages.build(parts, folder)
    (folder / COMMIT).write_text(f"{commit}\n")
    (folder / "NOTES.md").write_text(text)
    write_sums(folder)
    sign(folder, key)
    verify(folder, signers)
    return folder


def images(version: str, commit: str) -> list[str]:
    """The commands that build the images, which take a container engine."""
    return [
        f"docker build --target {variant} --tag actserve:{version}-{variant} "
        f"--build-arg VERSION={version} --build-arg REVISION={commit} "
        '${BASE_IMAGE:+--build-arg BASE_IMAGE="$BASE_IMAGE"} '
        '${BASE_DIGEST:+--build-arg BASE_DIGEST="$BASE_DIGEST"} .'
        for variant in packages.VARIANTS
    ]


def _output(*command: str) -> str:
    """What it prints. Raises `NotReady` where it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotReady(f"`{' '.join(command)}` ends with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a release, without publishing it.")
    parser.add_argument("version", help="such as 0.2.0")
    parser.add_argument("--dry-run", action="store_true", help="of the tree as it is, by a new key")
    parser.add_argument("--key", type=Path, help="private key of OpenSSH that signs")
    parser.add_argument("--parts", nargs="+", choices=packages.PARTS, help="only with --dry-run")
    given = parser.parse_args()
    if given.dry_run == (given.key is not None):
        parser.error("give either --key, with which a release is signed, or --dry-run")
    if given.parts and not given.dry_run:
        parser.error("a release has all packages; --parts is for --dry-run")
    changelog = (ROOT / "CHANGELOG.md").read_text()
    try:
        check_version(given.version)
        commit = head()
        if given.dry_run:
            with tempfile.TemporaryDirectory() as own:
                key, signers = made_up_key(Path(own))
                folder = make(
                    given.version,
                    commit=commit,
                    text=notes("Unreleased", changelog),
                    parts=given.parts or packages.buildable(),
                    key=key,
                    signers=signers,
                )
                shutil.copy(signers, folder.with_name(f"{given.version}.allowed_signers"))
        else:
            check_key(given.key, SIGNERS)
            check_tree()
            folder = make(
                given.version,
                commit=commit,
                text=notes(given.version, changelog),
                parts=list(packages.PARTS),
                key=given.key,
                signers=SIGNERS,
            )
    except (NotReady, NoHelm, packages.BuildFailed) as error:
        print(f"release: {error}")
        return 1
    print(f"\n{folder.relative_to(ROOT)}:")
    print(*(f"  {path.name}" for path in sorted(folder.iterdir())), sep="\n")
    print("\nThe images, where there is a container engine:")
    print(*(f"  {command}" for command in images(given.version, commit)), sep="\n")
    print(f"\nThen publish: scripts/publish.sh {folder.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
