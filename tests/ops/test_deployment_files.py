"""Compose and systemd take the files of ops/, and what they say of a server is so."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from actserve_server.config import ENV_PREFIX, Settings
from actserve_server.engine.closing import CLOSE_S
from tests.prometheus_server import program

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "ops/compose"
UNIT = ROOT / "ops/systemd/actserve.service"
DRAIN_S = Settings.model_fields["drain_grace_s"].default
CLOSES_WITHIN_S = DRAIN_S + CLOSE_S + 5
VARIABLES = {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields}


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    return yaml.safe_load((COMPOSE / name).read_text())


class TestCompose:
    @pytest.fixture
    def server(self) -> dict[str, Any]:
        return compose()["services"]["server"]

    @pytest.mark.parametrize("name", ["compose.yaml", "cuda.yaml"])
    def test_is_as_the_specification_has_it(self, name: str) -> None:
        schema = json.loads((ROOT / "third_party/schemas/compose-spec.json").read_text())
        # Named, since the schema writes its dialect with https.
        jsonschema.Draft7Validator(schema).validate(compose(name))

    @pytest.mark.parametrize("name", ["compose.yaml", "cuda.yaml"])
    def test_variables_are_settings_that_exist(self, name: str) -> None:
        told = set(compose(name)["services"]["server"]["environment"])
        assert {each for each in told if each.startswith(ENV_PREFIX)} <= VARIABLES

    def test_every_variable_of_yours_is_documented(self) -> None:
        texts = [(COMPOSE / name).read_text() for name in ("compose.yaml", "cuda.yaml")]
        asked = set(re.findall(r"\$\{(\w+)", "".join(texts)))
        head = texts[0].partition("\nname:")[0]
        assert asked - set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", head)) == {
            "ACTSERVE_TENSOR_PARALLEL_SIZE"
        }

    def test_no_image_has_a_tag_that_somebody_made_up(self) -> None:
        for service in compose()["services"].values():
            (default,) = re.findall(r"^\$\{\w+:-(.*)\}$", service["image"])
            assert default in {"actserve:cpu", "prom/prometheus", "grafana/grafana"}

    def test_only_this_machine_reaches_it_since_it_is_open(self, server: dict[str, Any]) -> None:
        assert server["environment"]["ACTSERVE_INSECURE"] == "true"
        for service in compose()["services"].values():
            assert all(port.startswith("127.0.0.1:") for port in service["ports"])

    def test_no_two_services_take_the_same_port(self) -> None:
        ports = [port for each in compose()["services"].values() for port in each["ports"]]
        outside = [port.split(":")[1] for port in ports]
        assert len(set(outside)) == len(outside)

    def test_runs_without_privileges_on_a_root_that_is_read_only(
        self, server: dict[str, Any]
    ) -> None:
        assert server["read_only"] is True
        written = {each.split(":")[1] for each in server["volumes"]}
        assert written == {"/var/cache/actserve", "/var/lib/actserve"}
        for service in compose()["services"].values():
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]

    def test_is_not_killed_while_it_drains(self, server: dict[str, Any]) -> None:
        assert int(server["stop_grace_period"].removesuffix("s")) >= CLOSES_WITHIN_S

    def test_every_file_that_is_mounted_is_there(self) -> None:
        mounts = [
            volume.split(":")
            for service in compose()["services"].values()
            for volume in service.get("volumes", [])
            if volume.startswith(".")
        ]
        assert len(mounts) > 3
        for source, _, mode in mounts:
            assert (COMPOSE / source).exists(), source
            assert mode == "ro"

    def test_its_image_is_one_of_the_dockerfile(self) -> None:
        stages = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        for name in ("compose.yaml", "cuda.yaml"):
            assert compose(name)["services"]["server"]["build"]["target"] in stages


def test_prometheus_takes_its_configuration_with_our_rules(tmp_path: Path) -> None:
    mounts = compose()["services"]["prometheus"]["volumes"]
    folder = "/etc/prometheus"
    for source, target, *_ in (mount.split(":") for mount in mounts):
        if target.startswith(folder):
            (tmp_path / target.removeprefix(f"{folder}/")).symlink_to((COMPOSE / source).resolve())
    done = subprocess.run(
        [program("promtool"), "check", "config", tmp_path / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout + done.stderr


def test_prometheus_and_grafana_find_each_other_and_the_server() -> None:
    services = compose()["services"]
    scraped = yaml.safe_load((COMPOSE / "prometheus.yaml").read_text())["scrape_configs"]
    (target,) = (
        target for job in scraped for each in job["static_configs"] for target in each["targets"]
    )
    assert target == f"server:{Settings.model_fields['metrics_port'].default}"
    (source,) = yaml.safe_load((COMPOSE / "grafana/datasources.yaml").read_text())["datasources"]
    assert source["url"].startswith("http://prometheus:")
    assert source["isDefault"] is True
    (provider,) = yaml.safe_load((COMPOSE / "grafana/dashboards.yaml").read_text())["providers"]
    mounted = {volume.split(":")[1] for volume in services["grafana"]["volumes"]}
    assert provider["options"]["path"] in mounted
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.parent == Path(provider["options"]["path"])
    assert (ROOT / "ops/grafana" / home.name).exists()


def unit() -> dict[str, list[str]]:
    """The values of each key, in order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        key, is_set, value = line.partition("=")
        if is_set and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


class TestUnit:
    @pytest.fixture
    def analyze(self, tmp_path: Path) -> Path:
        """The unit with a server that is here, which systemd looks for."""
        if shutil.which("systemd-analyze") is None:
            pytest.skip("systemd-analyze is not installed; Debian's package systemd has it")
        here = Path(sys.executable).with_name("actserve-server")
        copy = tmp_path / UNIT.name
        copy.write_text(UNIT.read_text().replace("/opt/actserve/bin/actserve-server", str(here)))
        return copy

    def systemd(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["systemd-analyze", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"LC_ALL": "C"},
        )

    def test_systemd_takes_it(self, analyze: Path) -> None:
        done = self.systemd("verify", "--man=no", analyze)
        assert done.returncode == 0, done.stderr
        assert UNIT.name not in done.stderr

    def test_systemd_finds_an_error_in_it(self, analyze: Path) -> None:
        analyze.write_text(analyze.read_text().replace("Type=exec", "Type=exact"))
        assert UNIT.name in self.systemd("verify", "--man=no", analyze).stderr

    def test_little_is_exposed(self, analyze: Path) -> None:
        # In tenths; 20 is what systemd calls OK.
        done = self.systemd("security", "--offline=true", "--threshold=20", analyze)
        assert done.returncode == 0, done.stdout[-200:] + done.stderr

    def test_it_is_not_killed_while_it_drains(self) -> None:
        (stop,) = unit()["TimeoutStopSec"]
        assert int(stop) >= CLOSES_WITHIN_S
        # The server ends its engines by itself; they must not be told to stop before that.
        assert unit()["KillMode"] == ["mixed"]

    def test_the_doctor_has_time_to_read_adapters(self) -> None:
        (start,) = unit()["TimeoutStartSec"]
        # 30 GiB from a network disk of 50 MiB/s.
        assert int(start.removesuffix("min")) * 60 >= 30 * 1024 / 50

    def test_what_fails_is_not_tried_for_ever(self) -> None:
        assert unit()["StartLimitIntervalSec"] == ["1h"]
        assert unit()["StartLimitBurst"] == ["5"]

    def test_an_option_that_cannot_be_used_is_not_tried_again(self) -> None:
        assert unit()["Restart"] == ["on-failure"]
        assert unit()["RestartPreventExitStatus"] == ["2"]

    def test_the_server_writes_where_it_may(self) -> None:
        told = dict(each.split("=", 1) for each in unit()["Environment"] if " " not in each)
        assert {name for name in told if name.startswith(ENV_PREFIX)} <= VARIABLES
        for name in ("HOME", "ACTSERVE_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
            assert told[name].startswith(f"/var/cache/{unit()['CacheDirectory'][0]}")
        assert told["ACTSERVE_DATA_DIR"] == f"/var/lib/{unit()['StateDirectory'][0]}"
        assert unit()["ProtectSystem"] == ["strict"]

    def test_the_doctor_looks_first_with_the_same_options(self) -> None:
        (before,), (start,) = unit()["ExecStartPre"], unit()["ExecStart"]
        assert before.replace(" doctor ", " serve ") == start
