"""A release is what was built, described and signed: a dry run of it, by the real tools."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from scripts import packages, release
from scripts.accept_chart import NoHelm, helm
from scripts.version import the_version

ROOT = Path(__file__).resolve().parents[2]
VERSION = the_version()
# Of builds, beside which other tests are run.
pytestmark = pytest.mark.timeout(300)
PUBLISH = ROOT / "scripts/publish.sh"
COMMIT = "0123456789" * 4
FILES = (
    *(f"{name}-{VERSION}-py3-none-any.whl" for name in ("actserve", "actserve_server")),
    *(f"{name}-{VERSION}.tar.gz" for name in ("actserve", "actserve_server")),
    *(f"actserve-image-{VERSION}-{variant}.cdx.json" for variant in packages.VARIANTS),
    *(f"actserve-{VERSION}{end}" for end in (".pom", ".jar", "-sources.jar", "-javadoc.jar")),
    *(f"actserve-{each}-{VERSION}.tgz" for each in ("chart", "client")),
    *(f"actserve-{VERSION}.crate", f"actserve-go-{VERSION}.zip"),
)


def parts() -> list[str]:
    """Those that take seconds, and whose tools are here; on CI all are."""
    found = ["python"]
    on_ci = os.environ.get("CI") == "true"
    if on_ci or importlib.util.find_spec("cyclonedx_py"):
        found.append("sbom")
    try:
        helm()
        found.append("chart")
    except NoHelm:
        if on_ci:
            raise
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A release in a folder that is named after its version, and who may sign it."""
    folder = tmp_path_factory.mktemp("release")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release, "RELEASES", folder)
        key, signers = release.made_up_key(folder)
        text = release.notes("Unreleased", (ROOT / "CHANGELOG.md").read_text())
        out = release.make(
            VERSION, commit=COMMIT, text=text, parts=parts(), key=key, signers=signers
        )
    return out, signers


@dataclass(frozen=True)
class Release:
    """Files of the names that a whole release has, signed, beside the tree of their commit."""

    tree: Path
    folder: Path
    key: Path
    signers: Path

    def git(self, *arguments: str) -> str:
        who = ("-c", "user.name=n", "-c", "user.email=n@example.com", "-c", "commit.gpgsign=false")
        return subprocess.check_output(["git", *who, *arguments], cwd=self.tree, text=True).strip()

    def sign(self) -> None:
        release.write_sums(self.folder)
        release.sign(self.folder, self.key)

    def publish(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.tree / "scripts/publish.sh", self.folder],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "SIGNERS": str(self.signers), "DRY_RUN": "1", **environment},
        )

    def is_refused(self, reason: str, **environment: str) -> None:
        done = self.publish(**environment)
        assert done.returncode == 1
        assert reason in done.stderr
        assert "+ " not in done.stdout


@pytest.fixture
def signed(tmp_path: Path) -> Release:
    tree, folder = tmp_path / "tree", tmp_path / VERSION
    for each in (tree / "scripts", tree / "client/rust", folder):
        each.mkdir(parents=True)
    shutil.copy(PUBLISH, tree / "scripts")
    made = Release(tree, folder, *release.made_up_key(tmp_path))
    made.git("init", "--quiet")
    made.git("add", ".")
    made.git("commit", "--quiet", "--message", "all")
    (folder / release.COMMIT).write_text(f"{made.git('rev-parse', 'HEAD')}\n")
    (folder / "NOTES.md").write_text("- new\n")
    for name in FILES:
        (folder / name).write_text(name)
    made.sign()
    return made


def test_packages_of_python_are_built_in_both_forms(made: tuple[Path, Path]) -> None:
    folder, _ = made
    names = {path.name for path in folder.iterdir()}
    for distribution in ("actserve", "actserve_server"):
        assert f"{distribution}-{VERSION}-py3-none-any.whl" in names
        assert f"{distribution}-{VERSION}.tar.gz" in names


def test_a_source_distribution_holds_what_its_wheel_is_built_of(made: tuple[Path, Path]) -> None:
    folder, _ = made
    for distribution, package in (("actserve", "actserve"), ("actserve_server", "actserve_server")):
        (wheel,) = folder.glob(f"{distribution}-*.whl")
        modules = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
        with tarfile.open(folder / f"{distribution}-{VERSION}.tar.gz") as archive:
            sources = archive.getnames()
        assert len(modules) > 20
        for module in modules:
            assert module.startswith(f"{package}/")
            assert any(source.endswith(f"/{module}") for source in sources), module


def test_the_bill_of_materials_names_every_pin_with_its_hashes(made: tuple[Path, Path]) -> None:
    import json

    from tests.ops.test_packaging import versions

    folder, _ = made
    if "sbom" not in parts():
        pytest.skip("cyclonedx-bom is not installed; run `make setup`")
    for variant in packages.VARIANTS:
        bill = json.loads((folder / f"actserve-image-{VERSION}-{variant}.cdx.json").read_text())
        assert bill["bomFormat"] == "CycloneDX"
        assert bill["metadata"]["component"]["name"] == "actserve-server"
        told = {
            part["purl"].removeprefix("pkg:pypi/").partition("?")[0] for part in bill["components"]
        }
        pins = versions(ROOT / f"requirements/{variant}.txt")
        assert told == {f"{name}@{version}" for name, version in pins.items()}
        for part in bill["components"]:
            assert any(reference["hashes"] for reference in part["externalReferences"])


def test_notes_are_the_section_of_the_changelog() -> None:
    changelog = (
        "# Changelog\n\n## [Unreleased]\n\n- new\n\n## [0.2.0] - 2027-01-31\n\n### Added\n\n"
        "- much\n\n## [0.1.0]\n\n- first\n"
    )
    assert release.notes("0.2.0", changelog) == "### Added\n\n- much\n"
    assert release.notes("0.1.0", changelog) == "- first\n"
    for missing in ("0.3.0", "0.2"):
        with pytest.raises(release.NotReady, match="says nothing of"):
            release.notes(missing, changelog)
    with pytest.raises(release.NotReady, match="says nothing of"):
        release.notes("Unreleased", "## [Unreleased]\n\n## [0.1.0]\n\n- first\n")


def test_checksums_are_of_every_file(made: tuple[Path, Path]) -> None:
    folder, _ = made
    listed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    files = {path.name for path in folder.iterdir()}
    assert listed == files - {"SHA256SUMS", "SHA256SUMS.sig"}
    assert {"NOTES.md", "COMMIT"} <= listed
    assert (folder / "COMMIT").read_text() == f"{COMMIT}\n"
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=False
    )
    assert done.returncode == 0


def test_a_signature_of_somebody_else_does_not_count(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, _ = made
    _, others = release.made_up_key(tmp_path)
    with pytest.raises(release.NotReady, match="the signature is of nobody in allowed_signers"):
        release.verify(folder, others)


def test_another_version_than_that_of_the_packages_is_refused() -> None:
    with pytest.raises(release.NotReady, match=r"make version VERSION=9\.9\.9"):
        release.check_version("9.9.9")


def test_a_key_that_is_missing_is_told_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(release.NotReady, match="there is no key"):
        release.check_key(tmp_path / "none", tmp_path / "allowed_signers")
    key, signers = release.made_up_key(tmp_path)
    release.check_key(key, signers)
    with pytest.raises(release.NotReady, match="says who may sign a release"):
        release.check_key(key, tmp_path / "none")


@pytest.mark.parametrize(
    "options", [[], ["--dry-run", "--key", "mine"], ["--key", "mine", "--parts", "python"]]
)
def test_a_release_is_signed_and_whole_unless_it_is_a_dry_run(options: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/release.py", VERSION, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--dry-run" in done.stderr


def test_the_images_are_told_what_they_are() -> None:
    commands = release.images("1.2.3", COMMIT)
    assert len(commands) == 2
    for variant, command in zip(("cpu", "cuda"), commands, strict=True):
        assert f"--target {variant} --tag actserve:1.2.3-{variant} " in command
        assert "--build-arg VERSION=1.2.3 " in command
        assert f"--build-arg REVISION={COMMIT} " in command
    dockerfile = (ROOT / "Dockerfile").read_text()
    for argument in ("VERSION", "REVISION", "BASE_IMAGE", "BASE_DIGEST"):
        assert f"\nARG {argument}=" in dockerfile
        assert f"--build-arg {argument}=" in commands[0]


@pytest.mark.parametrize("told", ["?? new.py", ""], ids=["dirty", "git fails"])
def test_a_tree_that_is_not_known_to_be_a_commit_is_refused(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "ROOT", tmp_path)
    if told:
        subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
        subprocess.run(
            ["git", "-C", tmp_path, "config", "status.showUntrackedFiles", "no"], check=True
        )
        (tmp_path / "new.py").touch()
    else:
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    reason = re.escape(told) if told else "`git status .*` ends with 128"
    with pytest.raises(release.NotReady, match=reason):
        release.check_tree()


def test_publishing_says_what_it_would_run(signed: Release) -> None:
    done = signed.publish(CHART_REPOSITORY="oci://registry.example.com/charts")
    assert done.returncode == 0, done.stderr
    ran = [line.removeprefix("+ ") for line in done.stdout.splitlines() if line.startswith("+ ")]
    kinds = [" ".join(command.split()[:2]) for command in ran]
    assert kinds == [
        *("uv publish", "npm publish", "env -C", "mvn --batch-mode", "helm push"),
        *("docker tag", "docker push") * 2,
        *("git tag", "git tag", "git push"),
    ]
    packages_of_python = {f"{signed.folder}/{name}" for name in FILES[:4]}
    assert set(ran[0].removeprefix("uv publish ").split()) == packages_of_python
    assert ran[4].endswith(" oci://registry.example.com/charts")
    commit = signed.git("rev-parse", "HEAD")
    for tag, command in zip((f"v{VERSION}", f"client/go/v{VERSION}"), ran[-3:-1], strict=True):
        assert command.endswith(f" {tag} {commit}")
    assert ran[-1] == f"git push origin v{VERSION} client/go/v{VERSION}"


def test_publishing_goes_on_where_it_ended(signed: Release) -> None:
    done = signed.publish(PARTS="chart go")
    ran = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("+ ")]
    assert ran == ["helm", "git", "git", "git"]


def test_publishing_takes_what_is_missing_as_an_error(signed: Release) -> None:
    # Nothing is run: what is missing is found before.
    signed.is_refused("set CHART_REPOSITORY", DRY_RUN="", PARTS="chart", CHART_REPOSITORY="")


@pytest.mark.parametrize("sums", ["as they were", "made anew"])
def test_what_was_changed_since_it_was_signed_is_not_published(signed: Release, sums: str) -> None:
    (signed.folder / "NOTES.md").write_text("something else\n")
    if sums == "made anew":
        release.write_sums(signed.folder)
    done = signed.publish()
    assert done.returncode != 0
    assert "+ " not in done.stdout


@pytest.mark.parametrize(
    "name", [f"actserve-{VERSION}-1-py3-none-any.whl", ".hidden", f"actserve-{VERSION}"]
)
def test_what_lies_beside_what_is_signed_is_not_published(signed: Release, name: str) -> None:
    (signed.folder / name).touch()
    signed.is_refused(f"{name} is not signed")


def test_a_link_is_not_published(signed: Release) -> None:
    path = signed.folder / FILES[0]
    path.rename(signed.tree.parent / "elsewhere")
    path.symlink_to(signed.tree.parent / "elsewhere")
    signed.is_refused(f"{FILES[0]} is no file")


def test_what_is_signed_as_another_version_is_not_published(signed: Release) -> None:
    other = signed.folder.with_name("9.9.9")
    signed.folder.rename(other)
    replace(signed, folder=other).is_refused("is not of version 9.9.9")


@pytest.mark.parametrize("longer", ["{}.1.tar.gz", "{}1.tar.gz"])
def test_a_version_that_only_begins_the_same_is_not_published(signed: Release, longer: str) -> None:
    name = f"actserve-{longer.format(VERSION)}"
    (signed.folder / name).touch()
    signed.sign()
    signed.is_refused(f"{name} is not of version {VERSION}")


def test_what_is_not_in_a_release_is_not_published(signed: Release) -> None:
    (signed.folder / f"actserve-client-{VERSION}.tgz").unlink()
    signed.sign()
    signed.is_refused("is not in this release", PARTS="typescript")


def test_another_commit_than_the_signed_one_is_not_published(signed: Release) -> None:
    signed.git("commit", "--quiet", "--allow-empty", "--message", "one more")
    signed.is_refused("check that out", PARTS="rust")


def test_a_tree_with_changes_is_not_published(signed: Release) -> None:
    (signed.tree / "client/rust/more.rs").touch()
    signed.git("config", "status.showUntrackedFiles", "no")
    signed.is_refused("?? client/rust/more.rs", PARTS="rust")


@pytest.mark.parametrize("revision", ["", COMMIT], ids=["unknown", "another"])
def test_an_image_of_another_commit_is_not_published(
    signed: Release, tmp_path: Path, revision: str
) -> None:
    engine = tmp_path / "bin/docker"
    engine.parent.mkdir()
    engine.write_text(f"#!/bin/sh\necho '{revision}'\n")
    engine.chmod(0o755)
    signed.is_refused(
        f"is of commit {revision or 'unknown'}",
        PARTS="images",
        DRY_RUN="",
        IMAGE_REPOSITORY="registry.example.com/actserve",
        PATH=f"{engine.parent}:{os.environ['PATH']}",
    )
