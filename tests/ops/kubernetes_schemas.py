"""Holds manifests against schemas: Kubernetes' own, and those of resources that others add."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

SCHEMAS = Path(__file__).resolve().parents[2] / "third_party/schemas"
GROUPS = (
    "gateway.networking.k8s.io/",
    "leaderworkerset.x-k8s.io/",
    "monitoring.coreos.com/",
)
"""Of resources that are not Kubernetes' own."""


def validate(manifest: dict[str, Any], version: str) -> None:
    """Raises `jsonschema.ValidationError` where a field is wrong, missing or unknown."""
    if not manifest["apiVersion"].startswith(GROUPS):
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    schema = added_schemas()[manifest["apiVersion"], manifest["kind"]]
    jsonschema.validate(manifest, schema)
    if manifest["kind"] == "LeaderWorkerSet":
        for pod in ("leaderTemplate", "workerTemplate"):
            _validate_pod(manifest["spec"]["leaderWorkerTemplate"][pod], version)


def _validate_pod(template: dict[str, Any], version: str) -> None:
    """As that of a Deployment, which any template is."""
    spec = {"selector": {"matchLabels": template["metadata"]["labels"]}, "template": template}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "pod"}}
    kubernetes_validate.validate(deployment | {"spec": spec}, version, strict=True)


@cache
def added_schemas() -> dict[tuple[str, str], dict[str, Any]]:
    """By version and kind."""
    found = {}
    for path in SCHEMAS.glob("*.json"):
        described = json.loads(path.read_text())
        if "kind" in described:
            version = f"{described['group']}/{described['version']}"
            found[version, described["kind"]] = _strict(described["schema"])
    return found


def _strict(schema: Any) -> Any:
    """The same, which takes no field that it does not know: a cluster would drop it silently."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(each) for name, each in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        strict.setdefault("additionalProperties", False)
    if isinstance(schema.get("pattern"), str):
        # Go has flags anywhere, Python in front.
        strict["pattern"] = schema["pattern"].replace("^(?i)", "(?i)^")
    return strict
