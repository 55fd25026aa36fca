"""What the chart promises, for every values file, as rendered by a real helm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from actserve_server.engine.closing import CLOSE_S
from actserve_server.rpc.server import LIVENESS

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "actserve"
VALUES = [CHART / "values.yaml", *sorted((CHART / "ci").glob("*.yaml"))]
KUBERNETES = "1.37"
TLS = ["--set", "settings.tls_cert=/tls/tls.crt", "--set", "settings.tls_key=/tls/tls.key"]
OPEN = ["--set", "insecure=true"]

Manifest = dict[str, Any]


@pytest.fixture(scope="session")
def helm() -> str:
    built = ROOT / ".tools" / "bin" / "helm"
    found = str(built) if built.exists() else shutil.which("helm")
    if found is None:
        # Where changes are judged a skip would hide a broken chart.
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no helm: run `make helm-tool`")
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def render(helm: str, *options: str | Path) -> list[Manifest]:
    """What is made of these options, open to everybody unless they say otherwise."""
    done = run(helm, "template", "release", CHART, *OPEN, *options)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


@pytest.fixture(params=VALUES, ids=lambda path: path.stem)
def values(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def manifests(helm: str, values: Path) -> list[Manifest]:
    return render(helm, "--values", values)


def only(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def pod_of(manifests: list[Manifest]) -> Manifest:
    return only(manifests, "Deployment")["spec"]["template"]["spec"]


@pytest.fixture
def pod(manifests: list[Manifest]) -> Manifest:
    return pod_of(manifests)


@pytest.fixture
def server(pod: Manifest) -> Manifest:
    (container,) = pod["containers"]
    return container


def env_of(container: Manifest) -> dict[str, str]:
    """Its variables; those that Kubernetes fills in as the field that it takes."""
    return {
        entry["name"]: entry["value"]
        if "value" in entry
        else entry["valueFrom"]["fieldRef"]["fieldPath"]
        for entry in container["env"]
        if "value" in entry or "fieldRef" in entry["valueFrom"]
    }


def test_lint_finds_nothing(helm: str, values: Path) -> None:
    is_default = values.name == "values.yaml"
    done = run(helm, "lint", "--strict", CHART, "--values", values, *(OPEN if is_default else ()))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_server_that_others_reach_knows_them_or_is_said_to_be_open(
    helm: str, values: Path
) -> None:
    done = run(helm, "template", "release", CHART, "--values", values)
    if values.name == "values.yaml":
        assert "set tls.secretName and access.secretName" in done.stderr
        for half in ("tls.secretName=t", "access.secretName=a"):
            assert run(helm, "template", "release", CHART, "--set", half).returncode != 0
        return
    (container,) = pod_of([each for each in yaml.safe_load_all(done.stdout) if each])["containers"]
    env = env_of(container)
    assert "ACTSERVE_INSECURE" not in env
    assert {"ACTSERVE_TLS_CERT", "ACTSERVE_TLS_KEY", "ACTSERVE_TOKEN_FILE"} <= env.keys()


def test_files_of_tls_and_of_who_may_call_come_from_secrets(helm: str) -> None:
    options = [
        *("tls.secretName=of-tls", "tls.clientAuthority=true", "access.secretName=of-access"),
        *("access.certificates=certificates.yaml", "access.tenants=tenants.yaml"),
    ]
    pod = pod_of(render(helm, *(part for each in options for part in ("--set", each))))
    (container,) = pod["containers"]
    env = env_of(container)
    files = {
        "TLS_CERT": "tls/tls.crt",
        "TLS_KEY": "tls/tls.key",
        "TLS_CLIENT_CA": "tls/ca.crt",
        "TOKEN_FILE": "access/tokens.yaml",
        "CERTIFICATE_FILE": "access/certificates.yaml",
        "TENANT_FILE": "access/tenants.yaml",
    }
    told = {name: env[f"ACTSERVE_{name}"] for name in files}
    assert told == {name: f"/etc/actserve/{path}" for name, path in files.items()}
    secrets = {each["name"]: each.get("secret", {}).get("secretName") for each in pod["volumes"]}
    for name in ("tls", "access"):
        (mount,) = (each for each in container["volumeMounts"] if each["name"] == name)
        assert (mount["mountPath"], mount["readOnly"]) == (f"/etc/actserve/{name}", True)
        # A file that is mounted by itself would never change.
        assert "subPath" not in mount
        assert secrets[name] == f"of-{name}"


def test_manifests_are_valid_kubernetes(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        # The operator's resources are no part of Kubernetes' own schema.
        if manifest["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_a_pod_tells_its_name_to_whoever_keeps_rows_there(server: Manifest) -> None:
    assert env_of(server)["ACTSERVE_REPLICA"] == "metadata.name"


@pytest.mark.parametrize("settings", [[], TLS], ids=["plain", "tls"])
def test_probes_ask_grpc_health_where_the_server_answers_it_without_tls(
    helm: str, values: Path, settings: list[str]
) -> None:
    (container,) = pod_of(render(helm, "--values", values, *settings))["containers"]
    port = int(env_of(container)["ACTSERVE_HEALTH_PORT"])
    assert port != int(env_of(container)["ACTSERVE_PORT"])
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[name]["grpc"]["port"] == port


def test_a_pod_whose_engine_is_started_again_gets_no_calls_and_is_not_killed(
    server: Manifest,
) -> None:
    assert "service" not in server["readinessProbe"]["grpc"]
    assert server["livenessProbe"]["grpc"]["service"] == LIVENESS


def test_startup_probe_leaves_time_to_load_the_model(server: Manifest) -> None:
    probe = server["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] >= 900


def test_termination_grace_leaves_time_to_drain_and_to_close(
    pod: Manifest, server: Manifest
) -> None:
    drain = float(env_of(server)["ACTSERVE_DRAIN_GRACE_S"])
    assert pod["terminationGracePeriodSeconds"] >= drain + CLOSE_S + 5


def test_shared_memory_is_memory_of_a_bounded_size(pod: Manifest, server: Manifest) -> None:
    (volume,) = (
        mount["name"] for mount in server["volumeMounts"] if mount["mountPath"] == "/dev/shm"
    )
    (source,) = (entry["emptyDir"] for entry in pod["volumes"] if entry["name"] == volume)
    assert source["medium"] == "Memory"
    assert source["sizeLimit"]


def test_runs_without_root_and_without_privileges(pod: Manifest, server: Manifest) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_everything_the_server_writes_to_is_mounted(pod: Manifest, server: Manifest) -> None:
    mounts = {mount["mountPath"]: mount["name"] for mount in server["volumeMounts"]}
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {"/tmp", "/dev/shm", "/var/cache/actserve", "/var/lib/actserve"} <= mounts.keys()
    assert set(mounts.values()) <= volumes
    assert Path("/var/cache/actserve") in Path(env_of(server)["ACTSERVE_CACHE_DIR"]).parents
    assert Path("/var/lib/actserve") in Path(env_of(server)["ACTSERVE_DATA_DIR"]).parents


def test_service_reaches_the_ports_the_server_listens_on(
    manifests: list[Manifest], server: Manifest
) -> None:
    env = env_of(server)
    listening = {"grpc": int(env["ACTSERVE_PORT"]), "metrics": int(env["ACTSERVE_METRICS_PORT"])}
    probed = {"health": int(env["ACTSERVE_HEALTH_PORT"])}
    assert {each["name"]: each["containerPort"] for each in server["ports"]} == listening | probed
    service = only(manifests, "Service")["spec"]
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == listening
    labels = only(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    # The probes and the service come from outside the pod.
    assert env["ACTSERVE_HOST"] == env["ACTSERVE_METRICS_HOST"] == "0.0.0.0"


def test_variables_are_settings_that_exist(server: Manifest) -> None:
    fields = set(settings_variables())
    names = {name for name in env_of(server) if name.startswith("ACTSERVE_")}
    assert names <= fields, f"not settings: {sorted(names - fields)}"


def settings_variables() -> Iterator[str]:
    """The variables that the server reads, by its own account."""
    from actserve_server.config import Settings

    prefix = Settings.model_config.get("env_prefix", "")
    for name in Settings.model_fields:
        yield f"{prefix}{name}".upper()


def test_kubernetes_adds_no_variables_of_its_own(pod: Manifest) -> None:
    # A Service named actserve would otherwise set ACTSERVE_PORT to "tcp://...".
    assert pod["enableServiceLinks"] is False


def test_gpus_are_limits_of_the_container(helm: str) -> None:
    manifests = render(helm, "--values", CHART / "ci" / "cuda-values.yaml", "--set", "gpus=4")
    (container,) = pod_of(manifests)["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert container["image"].endswith("-cuda")


def test_settings_become_variables_of_the_same_meaning(helm: str, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(
        "settings: {max_fit_bytes: 4000000000, tenant_share: 0.85, enforce_eager: true, "
        "hook_points: [resid_post]}"
    )
    (container,) = pod_of(render(helm, "--values", values))["containers"]
    env = env_of(container)
    assert env["ACTSERVE_MAX_FIT_BYTES"] == "4000000000"
    assert env["ACTSERVE_TENANT_SHARE"] == "0.85"
    assert env["ACTSERVE_ENFORCE_EAGER"] == "true"
    assert env["ACTSERVE_HOOK_POINTS"] == '["resid_post"]'


def test_the_chart_knows_every_setting_of_the_server_and_its_bounds() -> None:
    done = run(sys.executable, ROOT / "scripts" / "chart_settings.py", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_values_file_says_of_monitors_is_the_default() -> None:
    from actserve_server.config import Settings

    told = re.findall(r"^#  (\w+): ([0-9]+)\b", (CHART / "values.yaml").read_text(), re.MULTILINE)
    told = {name: float(number) for name, number in told if name != "max_model_len"}
    assert len(told) > 10
    assert told == {name: Settings.model_fields[name].default for name in told}


def test_the_addresses_of_webhooks_come_from_a_secret(helm: str) -> None:
    monitoring = ("--values", CHART / "ci" / "monitoring-values.yaml")
    pod = pod_of(render(helm, *monitoring, "--set", "webhooks.secret.key=of-mine.yaml"))
    (container,) = pod["containers"]
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "webhooks")
    assert mount["readOnly"] is True
    file = Path(env_of(container)["ACTSERVE_WEBHOOKS"])
    assert file == Path(mount["mountPath"], "of-mine.yaml")
    (volume,) = (each for each in pod["volumes"] if each["name"] == "webhooks")
    assert volume["secret"] == {"secretName": "actserve-webhooks"}


def test_without_a_secret_there_are_no_webhooks(helm: str) -> None:
    pod = pod_of(render(helm))
    assert "ACTSERVE_WEBHOOKS" not in env_of(pod["containers"][0])
    assert "webhooks" not in {each["name"] for each in pod["volumes"]}


@pytest.mark.parametrize("of", ["cache", "storage"])
def test_persistence_mounts_a_claim(helm: str, of: str) -> None:
    manifests = render(helm, "--set", f"{of}.persistence.enabled=true")
    claim = only(manifests, "PersistentVolumeClaim")["metadata"]["name"]
    sources = [volume.get("persistentVolumeClaim") for volume in pod_of(manifests)["volumes"]]
    assert {"claimName": claim} in sources


@pytest.mark.parametrize("of", ["cache", "storage"])
def test_existing_claim_is_used_and_none_is_made(helm: str, of: str) -> None:
    options = f"{of}.persistence.enabled=true,{of}.persistence.existingClaim=mine"
    manifests = render(helm, "--set", options)
    assert "PersistentVolumeClaim" not in {manifest["kind"] for manifest in manifests}
    sources = [volume.get("persistentVolumeClaim") for volume in pod_of(manifests)["volumes"]]
    assert {"claimName": "mine"} in sources


def test_the_url_of_a_database_comes_from_a_secret(helm: str) -> None:
    manifests = render(helm, "--set", "replicas=2,storage.databaseUrlSecret.name=mine")
    (container,) = pod_of(manifests)["containers"]
    (url,) = (each for each in container["env"] if each["name"] == "ACTSERVE_DATABASE_URL")
    assert url["valueFrom"] == {"secretKeyRef": {"name": "mine", "key": "url"}}
    for manifest in manifests:
        if manifest["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_http_port_is_served_where_it_is_set(helm: str) -> None:
    for options, wanted in ((), None), (("--set", "service.httpPort=8080"), 8080):
        manifests = render(helm, *options)
        (service,) = (each for each in manifests if each["kind"] == "Service")
        (container,) = pod_of(manifests)["containers"]
        ports = {each["name"]: each["port"] for each in service["spec"]["ports"]}
        opened = {each["name"]: each["containerPort"] for each in container["ports"]}
        told = {each["name"]: each.get("value") for each in container["env"]}
        assert ports.get("http") == opened.get("http") == wanted
        assert told.get("ACTSERVE_HTTP_PORT") == (wanted and str(wanted))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("replica=2", "additional properties 'replica' not allowed"),
        ("service.grpcPort=443", "minimum"),
        ("sharedMemory.size=lots", "does not match pattern"),
        ("settings.port=1234", "invalid propertyName 'port'"),
        ("gpus=1", "set image.variant to cuda"),
        ("settings.health_port=1234", "invalid propertyName 'health_port'"),
        ("settings.database_url=postgresql://", "invalid propertyName 'database_url'"),
        ("settings.webhooks=/etc/w.yaml", "invalid propertyName 'webhooks'"),
        ("settings.max_alert_second=60", "additional properties 'max_alert_second' not allowed"),
        ("settings.alert_text_tokens=5000", "maximum"),
        ("settings.max_alerts=many", "want integer"),
        ("webhooks.secret.key=../key", "does not match pattern"),
        ("storage.persistence.enabled=true,replicas=2", "set storage.databaseUrlSecret"),
    ],
)
def test_a_wrong_value_is_refused_with_a_reason(helm: str, setting: str, reason: str) -> None:
    done = run(helm, "template", "release", CHART, "--set", setting)
    assert done.returncode != 0
    assert reason in done.stderr
