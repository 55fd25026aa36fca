"""Write the settings of the Helm chart's schema from the server's own, or check that they agree.

    python scripts/chart_settings.py            write helm/actserve/values.schema.json
    python scripts/chart_settings.py --check    exit 1 when a run would differ

So a setting with a wrong name or type is refused by helm, where the server would not know of the
name and fail on the type.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from actserve_server.config import Settings

SCHEMA = Path(__file__).resolve().parent.parent / "helm/actserve/values.schema.json"

BY_THE_CHART = {
    "host",
    "insecure",
    "master_addr",
    "master_port",
    "nnodes",
    "node_rank",
    "port",
    "health_port",
    "http_port",
    "metrics_host",
    "metrics_port",
    "drain_grace_s",
    "cache_dir",
    "data_dir",
    "database_url",
    "model",
    "replica",
    "webhooks",
}
"""What values of the chart's own say, or what follows from how a pod is made."""

_KEPT = ("type", "enum", "minimum", "maximum", "exclusiveMinimum")


def properties() -> dict[str, Any]:
    """The schema of every setting that a values file may give, by name."""
    whole = Settings.model_json_schema()
    return {
        name: _plain(described, whole.get("$defs", {}))
        for name, described in sorted(whole["properties"].items())
        if name not in BY_THE_CHART
    }


def _plain(described: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Type and bounds alone: unset is the way to say null in a values file."""
    if "$ref" in described:
        return _plain(definitions[described["$ref"].rpartition("/")[2]], definitions)
    for choice in described.get("anyOf", ()):
        if choice != {"type": "null"}:
            return _plain(choice, definitions)
    found = {key: described[key] for key in _KEPT if key in described}
    if found.get("type") == "array":
        found["items"] = _plain(described["items"], definitions)
    if found.get("type") == "object":  # A part of its own, which is written as text as well.
        return {"type": ["object", "string"]}
    return found


def written(text: str) -> str:
    """The schema with the settings of today."""
    schema = json.loads(text)
    settings = schema["properties"]["settings"]
    settings["propertyNames"]["not"]["enum"] = sorted(BY_THE_CHART)
    settings["properties"] = properties()
    settings["additionalProperties"] = False
    return json.dumps(schema, indent=2) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write or check the settings of the chart.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    before = SCHEMA.read_text()
    after = written(before)
    if check and before != after:
        print(f"stale: {SCHEMA.name}. Run `make proto` and commit the result.")
        return 1
    if not check:
        SCHEMA.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
