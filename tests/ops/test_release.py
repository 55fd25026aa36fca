"""A release is what was built, described and signed: a dry run of it, by the real tools."""

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
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
        out = release.make(VERSION, text=text, parts=parts(), key=key, signers=signers)
    return out, signers


def publish(folder: Path, signers: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PUBLISH, folder],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SIGNERS": str(signers), "DRY_RUN": "1", **environment},
    )


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
    assert "NOTES.md" in listed
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
    commands = release.images("1.2.3")
    assert len(commands) == 2
    for variant, command in zip(("cpu", "cuda"), commands, strict=True):
        assert f"--target {variant} --tag actserve:1.2.3-{variant} " in command
        assert "--build-arg VERSION=1.2.3 " in command
    dockerfile = (ROOT / "Dockerfile").read_text()
    for argument in ("VERSION", "REVISION", "BASE_IMAGE", "BASE_DIGEST"):
        assert f"\nARG {argument}=" in dockerfile
        assert f"--build-arg {argument}=" in commands[0]


def test_publishing_says_what_it_would_run(made: tuple[Path, Path]) -> None:
    done = publish(*made, CHART_REPOSITORY="oci://registry.example.com/charts")
    assert done.returncode == 0, done.stderr
    ran = [line.removeprefix("+ ") for line in done.stdout.splitlines() if line.startswith("+ ")]
    kinds = [" ".join(command.split()[:2]) for command in ran]
    assert kinds == [
        *("uv publish", "npm publish", "env -C", "mvn --batch-mode", "helm push"),
        *("docker tag", "docker push") * 2,
        *("git tag", "git tag", "git push"),
    ]
    folder, _ = made
    for name in ("actserve", "actserve_server"):
        assert f"{folder}/{name}-{VERSION}.tar.gz" in ran[0]
    assert ran[4].endswith(" oci://registry.example.com/charts")
    assert ran[-1] == f"git push origin v{VERSION} client/go/v{VERSION}"


def test_publishing_goes_on_where_it_ended(made: tuple[Path, Path]) -> None:
    done = publish(*made, PARTS="chart go")
    ran = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("+ ")]
    assert ran == ["helm", "git", "git", "git"]


def test_publishing_takes_what_is_missing_as_an_error(made: tuple[Path, Path]) -> None:
    # Nothing is run: what is missing is found before.
    done = publish(*made, DRY_RUN="", PARTS="chart", CHART_REPOSITORY="")
    assert done.returncode == 1
    assert "set CHART_REPOSITORY" in done.stderr
    assert "+ helm" not in done.stdout


@pytest.mark.parametrize("sums", ["as they were", "made anew"])
def test_what_was_changed_since_it_was_signed_is_not_published(
    made: tuple[Path, Path], sums: str
) -> None:
    folder, signers = made
    before = {name: (folder / name).read_bytes() for name in ("NOTES.md", "SHA256SUMS")}
    try:
        (folder / "NOTES.md").write_text("something else\n")
        if sums == "made anew":
            release.write_sums(folder)
        done = publish(folder, signers)
    finally:
        for name, content in before.items():
            (folder / name).write_bytes(content)
    assert done.returncode != 0
    assert "+ " not in done.stdout
