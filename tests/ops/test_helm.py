"""What the chart promises, for every values file, as rendered by a real helm."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from actserve_server import config
from actserve_server.engine.closing import CLOSE_S
from actserve_server.engine.vllm.ring import DEFAULT_CAPACITY
from actserve_server.rpc.server import LIVENESS
from scripts import accept_chart
from tests.ops import kubernetes_schemas

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "actserve"
VALUES = [CHART / "values.yaml", *accept_chart.examples()]
OLDEST, NEWEST = "1.27", "1.37"
"""Kubernetes, of which the schemas are at hand."""
WITH_IMAGES = "1.33"
"""From which on Kubernetes mounts images as folders."""
TLS = ["--set", "settings.tls_cert=/tls/tls.crt", "--set", "settings.tls_key=/tls/tls.key"]
LWS = "leaderworkerset.sigs.k8s.io"
SECRETS = "tls.secretName=t,access.secretName=a"
OPEN = ["--set", "insecure=true"]
LIMITED = "insecure=true,networkPolicy.enabled=true,networkPolicy.limitEgress=true"

Manifest = dict[str, Any]


@pytest.fixture(scope="session")
def helm() -> str:
    try:
        return str(accept_chart.helm())
    except accept_chart.NoHelm as error:
        # Where changes are judged a skip would hide a broken chart.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def render(helm: str, *options: str | Path) -> list[Manifest]:
    """What is made of these options, open to everybody unless they say otherwise."""
    return json.loads(rendered(helm, *options))


@cache
def rendered(helm: str, *options: str | Path) -> str:
    """The same as JSON, which is made once."""
    newest = ("--kube-version", NEWEST)
    done = run(helm, "template", "release", CHART, *newest, *OPEN, *options)
    assert done.returncode == 0, done.stderr
    return json.dumps([manifest for manifest in yaml.safe_load_all(done.stdout) if manifest])


@pytest.fixture(params=VALUES, ids=lambda path: path.stem)
def values(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def manifests(helm: str, values: Path) -> list[Manifest]:
    return render(helm, "--values", values)


def only(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def template_of(manifests: list[Manifest]) -> Manifest:
    """Of the pods that serve."""
    if any(manifest["kind"] == "LeaderWorkerSet" for manifest in manifests):
        return only(manifests, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
    return only(manifests, "Deployment")["spec"]["template"]


def pod_of(manifests: list[Manifest]) -> Manifest:
    return template_of(manifests)["spec"]


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


def test_the_chart_makes_of_every_example_what_was_accepted(helm: str) -> None:
    found = accept_chart.differences()
    assert not found, "\n".join(["run `make accept-chart` if this is meant:", *found])


def test_there_is_an_example_of_each_size() -> None:
    wanted = {"laptop-cpu", "one-gpu", "four-gpus", "two-nodes", "three-replicas"}
    assert {accept_chart.accepted_file(values).stem for values in VALUES[1:]} == wanted


def test_a_server_that_others_reach_knows_them_or_is_said_to_be_open(
    helm: str, values: Path
) -> None:
    at = ("--kube-version", NEWEST, "--values", values)
    done = run(helm, "template", "release", CHART, *at)
    if values.name == "values.yaml":
        assert "set tls.secretName and access.secretName" in done.stderr
        for half in ("tls.secretName=t", "access.secretName=a"):
            assert run(helm, "template", "release", CHART, "--set", half).returncode != 0
        return
    (container,) = pod_of([each for each in yaml.safe_load_all(done.stdout) if each])["containers"]
    env = env_of(container)
    if values.name == "laptop-cpu-values.yaml":
        assert env["ACTSERVE_INSECURE"] == "true"
        return
    assert "ACTSERVE_INSECURE" not in env
    assert {"ACTSERVE_TLS_CERT", "ACTSERVE_TLS_KEY"} <= env.keys()
    assert {"ACTSERVE_TOKEN_FILE", "ACTSERVE_CERTIFICATE_FILE"} & env.keys()


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


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_manifests_are_valid_in_the_oldest_and_newest_kubernetes(
    helm: str, values: Path, version: str
) -> None:
    if version == OLDEST and "image:" in values.read_text().partition("folders:")[2]:
        version = WITH_IMAGES
    for manifest in render(helm, "--values", values, "--kube-version", version):
        kubernetes_schemas.validate(manifest, version)


def test_the_chart_says_the_oldest_kubernetes() -> None:
    said = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    assert said == f">={OLDEST}.0-0"


@pytest.mark.parametrize(
    ("kind", "break_it"),
    [
        ("Deployment", lambda spec: spec["template"]["spec"].update(colour="red")),
        ("GRPCRoute", lambda spec: spec["rules"][0]["backendRefs"][0].update(port="http")),
        ("BackendTLSPolicy", lambda spec: spec["validation"].pop("hostname")),
        ("ServiceMonitor", lambda spec: spec["endpoints"][0].update(colour="red")),
        ("PrometheusRule", lambda spec: spec["groups"][0].pop("name")),
        ("HorizontalPodAutoscaler", lambda spec: spec.update(maxReplicas="many")),
    ],
)
def test_a_manifest_that_is_wrong_is_found(helm: str, kind: str, break_it: Any) -> None:
    manifests = render(helm, "--values", CHART / "ci" / "three-replicas-values.yaml")
    manifest = only(manifests, kind)
    break_it(manifest["spec"])
    with pytest.raises(jsonschema.ValidationError):
        kubernetes_schemas.validate(manifest, NEWEST)


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


def test_startup_probe_leaves_time_by_the_size_of_the_model(helm: str) -> None:
    for options, seconds in (
        ((), 930),
        (("--set", "modelGiB=140"), 900 + 30 * 140),
        (("--set", "modelGiB=140,probes.startupSeconds=60"), 60),
    ):
        (container,) = pod_of(render(helm, *options))["containers"]
        probe = container["startupProbe"]
        assert probe["failureThreshold"] * probe["periodSeconds"] == seconds


def test_shared_memory_holds_the_rings_of_all_engines(pod: Manifest, server: Manifest) -> None:
    (source,) = (entry["emptyDir"] for entry in pod["volumes"] if entry["name"] == "shared-memory")
    env = env_of(server)
    engines = 1 + 2 * len(json.loads(env.get("ACTSERVE_NLA", "[]")))
    size = int(source["sizeLimit"].removesuffix("Gi")) << 30
    # And half as much again for vLLM's own.
    assert size >= engines * DEFAULT_CAPACITY + (512 << 20)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, "1Gi"),
        ({"nla": ["a"]}, "2Gi"),
        ({"nla_loadable": ["a", "b"]}, "3Gi"),
        ({"nla_folder": "/srv/actserve/pairs"}, "2Gi"),
        ({"nla": ["a"], "nla_loadable": ["b"], "nla_folder": "/srv/actserve/pairs"}, "4Gi"),
    ],
)
def test_shared_memory_grows_with_pairs_that_are_loaded_at_once_or_later(
    helm: str, settings: dict[str, Any], size: str
) -> None:
    pod = pod_of(render(helm, "--set-json", f"settings={json.dumps(settings)}"))
    (source,) = (each["emptyDir"] for each in pod["volumes"] if each["name"] == "shared-memory")
    assert source["sizeLimit"] == size


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
    if "ACTSERVE_HTTP_PORT" in env:
        listening["http"] = int(env["ACTSERVE_HTTP_PORT"])
    probed = {"health": int(env["ACTSERVE_HEALTH_PORT"])}
    assert {each["name"]: each["containerPort"] for each in server["ports"]} == listening | probed
    # As its operator labels the first pod of a group.
    labels = template_of(manifests)["metadata"]["labels"] | {f"{LWS}/worker-index": "0"}
    for each in (manifest for manifest in manifests if manifest["kind"] == "Service"):
        service = each["spec"]
        ports = {port["targetPort"]: port["port"] for port in service["ports"]}
        # Metrics by one of them alone, or they would be counted twice.
        for_calls = {name: port for name, port in listening.items() if name != "metrics"}
        assert ports == (for_calls if service.get("clusterIP") == "None" else listening)
        assert service["selector"].items() <= labels.items()
    # The probes and the service come from outside the pod.
    assert env["ACTSERVE_HOST"] == env["ACTSERVE_METRICS_HOST"] == "0.0.0.0"


def test_variables_are_settings_that_exist(server: Manifest) -> None:
    fields = {f"{config.ENV_PREFIX}{name}".upper() for name in config.Settings.model_fields}
    names = {name for name in env_of(server) if name.startswith("ACTSERVE_")}
    assert names <= fields, f"not settings: {sorted(names - fields)}"


def test_every_option_of_the_chart_is_one_of_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        config.load(["--help"])
    flags = set(re.findall(r"--([a-z][a-z0-9-]*)", capsys.readouterr().out))
    schema = json.loads((CHART / "values.schema.json").read_text())
    settings = schema["properties"]["settings"]["properties"]
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    by_the_chart = re.findall(r"- name: ACTSERVE_([A-Z_]+)\n", templates)
    assert len(settings) > 50
    assert len(by_the_chart) > 10
    options = {name.lower().replace("_", "-") for name in (*settings, *by_the_chart)}
    assert options <= flags


def test_kubernetes_adds_no_variables_of_its_own(pod: Manifest) -> None:
    # A Service named actserve would otherwise set ACTSERVE_PORT to "tcp://...".
    assert pod["enableServiceLinks"] is False


def test_gpus_are_limits_of_the_container(helm: str) -> None:
    manifests = render(helm, "--values", CHART / "ci" / "one-gpu-values.yaml", "--set", "gpus=4")
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
    told = re.findall(r"^#  (\w+): ([0-9]+)\b", (CHART / "values.yaml").read_text(), re.MULTILINE)
    told = {name: float(number) for name, number in told if name != "max_model_len"}
    assert len(told) > 10
    assert told == {name: config.Settings.model_fields[name].default for name in told}


def test_the_addresses_of_webhooks_come_from_a_secret(helm: str) -> None:
    monitoring = ("--values", CHART / "ci" / "three-replicas-values.yaml")
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
        kubernetes_schemas.validate(manifest, NEWEST)


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
        (
            "storage.persistence.enabled=true,autoscaling.enabled=true",
            "set storage.databaseUrlSecret",
        ),
        ("insecure=true,model=lab/model", "set settings.revision to the commit"),
        ("insecure=true,model=lab/model,settings.revision=main", "in 40 hexadecimal digits"),
        ("insecure=true,folders[0].name=models", "models is either a claim or an image"),
        ("folders[0].name=../models,folders[0].claim=mine", "does not match pattern"),
        ("image.digest=latest", "does not match pattern"),
        (
            "insecure=true,nodes=2,gpus=8,image.variant=cuda,settings.tensor_parallel_size=8",
            "nodes is 2, each with 8 devices: set settings.tensor_parallel_size to 16",
        ),
        (
            "insecure=true,nodes=2,settings.tensor_parallel_size=2,autoscaling.enabled=true",
            "autoscaling is of Deployments, but nodes is more than 1",
        ),
        ("insecure=true,nodes=2,settings.tensor_parallel_size=2", "set networkPolicy.enabled"),
        (
            "insecure=true,extraEnv[0].name=ACTSERVE_DATABASE_URL,extraEnv[0].value=postgresql://",
            "set storage.databaseUrlSecret",
        ),
        (
            "insecure=true,args={serve,--database-url,postgresql://}",
            "set storage.databaseUrlSecret",
        ),
        (
            "insecure=true,args={serve,--database-url=postgresql://}",
            "set storage.databaseUrlSecret",
        ),
        (
            f"{LIMITED},networkPolicy.dns=null",
            "set networkPolicy.dns",
        ),
        ("insecure=true,grpcRoute.enabled=true", "set grpcRoute.parentRefs"),
        (
            f"{SECRETS},grpcRoute.enabled=true,grpcRoute.parentRefs[0].name=public",
            "set grpcRoute.backendTls.hostname",
        ),
        (
            "insecure=true,networkPolicy.enabled=true,serviceMonitor.enabled=true",
            "set networkPolicy.prometheus",
        ),
        (
            "insecure=true,autoscaling.enabled=true,autoscaling.minReplicas=9",
            "below minReplicas, which is 9: raise it",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_a_reason(helm: str, setting: str, reason: str) -> None:
    done = run(helm, "template", "release", CHART, "--set", setting)
    assert done.returncode != 0
    assert reason in done.stderr


def test_folders_are_mounted_read_only_below_srv(helm: str) -> None:
    options = (
        "folders[0].name=models,folders[0].claim=mine,folders[1].name=pairs,folders[1].image=p:1"
    )
    pod = pod_of(render(helm, "--set", options))
    (container,) = pod["containers"]
    mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    sources = {"models": {"persistentVolumeClaim": {"claimName": "mine", "readOnly": True}}}
    sources["pairs"] = {"image": {"reference": "p:1"}}
    for name, source in sources.items():
        mount = mounts[f"/srv/actserve/{name}"]
        assert mount["readOnly"] is True
        assert volumes[mount["name"]] == {"name": mount["name"], **source}


def test_an_image_as_a_folder_takes_a_kubernetes_that_mounts_it(helm: str) -> None:
    options = ("--set", "folders[0].name=models,folders[0].image=m:1", *OPEN)
    done = run(helm, "template", "release", CHART, "--kube-version", OLDEST, *options)
    assert "use a claim" in done.stderr


def test_a_digest_names_the_image_whatever_its_tag(helm: str) -> None:
    digest = "sha256:" + "0" * 64
    pod = pod_of(render(helm, "--set", f"image.digest={digest},image.tag=latest"))
    assert pod["containers"][0]["image"] == f"actserve@{digest}"


def test_the_token_of_hugging_face_comes_from_a_secret(helm: str) -> None:
    (container,) = pod_of(render(helm, "--set", "huggingFace.tokenSecret.name=hub"))["containers"]
    (token,) = (each for each in container["env"] if each["name"] == "HF_TOKEN")
    assert token["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}


def test_the_pods_have_addresses_of_their_own_where_clients_balance(helm: str) -> None:
    manifests = render(helm, "--set", "service.headless=true")
    services = {
        each["metadata"]["name"]: each["spec"] for each in manifests if each["kind"] == "Service"
    }
    assert services["release-actserve-pods"]["clusterIP"] == "None"
    assert "clusterIP" not in services["release-actserve"]


def test_the_protocol_of_calls_is_told_where_there_is_no_tls(helm: str) -> None:
    for options, wanted in (((), "kubernetes.io/h2c"), (TLS, None)):
        ports = only(render(helm, *options), "Service")["spec"]["ports"]
        (port,) = (each for each in ports if each["name"] == "grpc")
        assert port.get("appProtocol") == wanted


def test_a_gateway_reaches_the_service_by_tls_where_the_server_speaks_it(helm: str) -> None:
    manifests = render(helm, "--values", CHART / "ci" / "three-replicas-values.yaml")
    route = only(manifests, "GRPCRoute")["spec"]
    (backend,) = route["rules"][0]["backendRefs"]
    names = {each["metadata"]["name"] for each in manifests if each["kind"] == "Service"}
    policy = only(manifests, "BackendTLSPolicy")["spec"]
    assert {backend["name"], policy["targetRefs"][0]["name"]} == {"release-actserve"} <= names
    assert policy["validation"]["hostname"] in route["hostnames"]


def test_a_gateway_asks_for_no_tls_where_there_is_none(helm: str) -> None:
    options = "grpcRoute.enabled=true,grpcRoute.parentRefs[0].name=public"
    kinds = {each["kind"] for each in render(helm, "--set", options)}
    assert "GRPCRoute" in kinds
    assert "BackendTLSPolicy" not in kinds


def test_a_policy_lets_in_callers_and_prometheus_and_nobody_else(helm: str) -> None:
    lab, monitoring = ({"podSelector": {"matchLabels": {"of": of}}} for of in ("lab", "prometheus"))
    options = {"enabled": True, "clients": [lab], "prometheus": [monitoring], "limitEgress": True}
    manifests = render(helm, "--set-json", f"networkPolicy={json.dumps(options)}")
    policy = only(manifests, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [
        {"ports": [{"port": "grpc"}], "from": [lab]},
        {"ports": [{"port": "metrics"}], "from": [monitoring]},
    ]
    (names,) = policy["egress"]
    assert {each["port"] for each in names["ports"]} == {53}
    # Nowhere else: whatever is sent to port 53 would leave the cluster.
    (peer,) = names["to"]
    assert peer["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "kube-system"
    }
    assert peer["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
    labels = only(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()


def test_pods_follow_the_queue_and_nothing_else_says_how_many(helm: str) -> None:
    manifests = render(helm, "--values", CHART / "ci" / "three-replicas-values.yaml")
    deployment = only(manifests, "Deployment")
    scaler = only(manifests, "HorizontalPodAutoscaler")["spec"]
    assert "replicas" not in deployment["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    series = scaler["metrics"][0]["pods"]["metric"]["name"]
    assert f"`{series}`" in (ROOT / "docs/operations.md").read_text()


def test_dashboards_and_rules_are_those_of_ops(helm: str) -> None:
    manifests = render(helm, "--values", CHART / "ci" / "three-replicas-values.yaml")
    dashboards = {path.name: path.read_text() for path in (ROOT / "ops/grafana").glob("*.json")}
    made = only(manifests, "ConfigMap")
    assert {name: json.loads(text) for name, text in made["data"].items()} == {
        name: json.loads(text) for name, text in dashboards.items()
    }
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    rules = [path for path in (ROOT / "ops/prometheus").glob("*.yaml") if "_test" not in path.stem]
    groups = [
        group for path in sorted(rules) for group in yaml.safe_load(path.read_text())["groups"]
    ]
    assert groups
    assert only(manifests, "PrometheusRule")["spec"]["groups"] == groups


def test_the_package_holds_dashboards_and_rules_and_no_examples(helm: str, tmp_path: Path) -> None:
    done = run(helm, "package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("actserve-*.tgz")
    with tarfile.open(package) as archive:
        names = archive.getnames()
    assert "actserve/dashboards/actserve.json" in names
    assert "actserve/alerts/rules.yaml" in names
    assert not [name for name in names if "/ci/" in name or "_test" in name]


@pytest.fixture
def group(helm: str) -> Manifest:
    """A server and those that compute for it."""
    manifests = render(helm, "--values", CHART / "ci" / "two-nodes-values.yaml")
    assert "Deployment" not in {manifest["kind"] for manifest in manifests}
    return only(manifests, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]


def test_a_group_has_no_name_of_a_service(helm: str) -> None:
    # Its operator makes one of that name.
    manifests = render(helm, "--values", CHART / "ci" / "two-nodes-values.yaml")
    name = only(manifests, "LeaderWorkerSet")["metadata"]["name"]
    assert name not in {each["metadata"]["name"] for each in manifests if each["kind"] == "Service"}


def test_the_machines_of_a_model_are_one_group_that_starts_anew_together(group: Manifest) -> None:
    assert group["size"] == 2
    assert group["restartPolicy"] == "RecreateGroupOnPodRestart"


def test_the_machines_of_a_model_know_each_other_by_what_their_operator_says(
    group: Manifest,
) -> None:
    for template in ("leaderTemplate", "workerTemplate"):
        (container,) = group[template]["spec"]["containers"]
        env = env_of(container)
        assert env["ACTSERVE_NODE_RANK"] == "$(LWS_WORKER_INDEX)"
        assert env["ACTSERVE_MASTER_ADDR"] == "$(LWS_LEADER_ADDRESS)"
        assert env["ACTSERVE_NNODES"] == "2"
        assert int(env["ACTSERVE_TENSOR_PARALLEL_SIZE"]) == 2 * int(
            container["resources"]["limits"]["nvidia.com/gpu"]
        )


def test_a_machine_that_computes_listens_to_nobody_and_has_no_secret(group: Manifest) -> None:
    pod = group["workerTemplate"]["spec"]
    (container,) = pod["containers"]
    assert env_of(container)["ACTSERVE_HOST"] == "127.0.0.1"
    assert not [name for name in container if name == "ports" or name.endswith("Probe")]
    assert "secret" not in json.dumps(pod).lower()
    # It reads the same model.
    (leader,) = group["leaderTemplate"]["spec"]["containers"]
    models = [mount for mount in leader["volumeMounts"] if mount["name"] == "folder-models"]
    assert models
    assert [each for each in container["volumeMounts"] if each["name"] == "folder-models"] == models


def test_machines_of_a_model_reach_each_other_through_a_policy(helm: str) -> None:
    manifests = render(helm, "--values", CHART / "ci" / "two-nodes-values.yaml")
    policy = only(manifests, "NetworkPolicy")["spec"]
    (peers,) = (rule["from"] for rule in policy["ingress"] if "ports" not in rule)
    assert peers == [{"podSelector": policy["podSelector"]}]
