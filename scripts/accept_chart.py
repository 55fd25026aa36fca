"""Write what the chart makes of every example into `tests/ops/chart`, or check that it is there.

    python scripts/accept_chart.py            write tests/ops/chart/*.yaml
    python scripts/accept_chart.py --check    exit 1, with the differences, when a run would differ

So a change of a template shows in a review as what it changes in a cluster.
"""

import argparse
import difflib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm/actserve"
ACCEPTED = ROOT / "tests/ops/chart"
KUBERNETES = "1.37.0"
"""For which the examples are rendered."""


class NoHelm(Exception):
    """There is no helm here; the message says how to get it."""


def helm() -> Path:
    """The helm that `make helm-tool` has built, or that on the path. Raises `NoHelm`."""
    built = ROOT / ".tools/bin/helm"
    found = built if built.exists() else shutil.which("helm")
    if found is None:
        raise NoHelm("there is no helm here; run `make helm-tool`, which takes Go")
    return Path(found)


def examples() -> list[Path]:
    return sorted((CHART / "ci").glob("*-values.yaml"))


def accepted_file(values: Path) -> Path:
    return ACCEPTED / f"{values.name.removesuffix('-values.yaml')}.yaml"


def rendered(values: Path) -> str:
    """What a cluster is told for these values, without what every release changes."""
    command = [helm(), "template", "release", CHART, "--values", values]
    done = subprocess.run(
        [*command, "--kube-version", KUBERNETES], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{values.name}: {done.stderr}")
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    manifests = [each for each in yaml.safe_load_all(done.stdout) if each]
    manifests.sort(key=lambda each: (each["kind"], each["metadata"]["name"]))
    text = yaml.safe_dump_all(map(_without_copies, manifests), sort_keys=True, width=120)
    # Of a tag, a name of the chart, and a label.
    return re.sub(rf"(actserve[:-]|version: '?){re.escape(version)}\b", r"\1VERSION", text)


def _without_copies(manifest: dict[str, Any]) -> dict[str, Any]:
    """Dashboards and rules by name alone: they are files of ops/, and change there."""
    if manifest["kind"] == "ConfigMap":
        return manifest | {"data": "as in ops/grafana"}
    if manifest["kind"] == "PrometheusRule":
        return manifest | {"spec": {"groups": "as in ops/prometheus"}}
    return manifest


def differences() -> list[str]:
    """Lines of what is not as accepted; files of examples that are gone among them."""
    wanted = {accepted_file(values): rendered(values) for values in examples()}
    found: list[str] = [
        f"{path.relative_to(ROOT)} is of no example"
        for path in sorted(ACCEPTED.glob("*.yaml"))
        if path not in wanted
    ]
    for path, text in wanted.items():
        before = path.read_text() if path.exists() else ""
        found += difflib.unified_diff(
            before.splitlines(), text.splitlines(), f"accepted {path.name}", "now", lineterm=""
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Write or check what the chart makes of examples.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    try:
        if check:
            if found := differences():
                print(*found, sep="\n")
                print("The chart makes something else; run `make accept-chart` if it is meant.")
                return 1
            return 0
        ACCEPTED.mkdir(exist_ok=True)
        for path in ACCEPTED.glob("*.yaml"):
            path.unlink()
        for values in examples():
            accepted_file(values).write_text(rendered(values))
    except NoHelm as error:
        print(f"accept-chart: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
