"""The container files agree with the server: probes, ports, user; what docker would build is not run here."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from mlpconv.deploy.limits import Limits
from mlpconv.deploy.server import PROBES

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "deploy"


def test_the_manifest_is_valid_and_agrees_with_the_server() -> None:
    deployment, service = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in PROBES
        assert container[probe]["httpGet"]["port"] == container["ports"][0]["name"]
    assert "ready" not in container["livenessProbe"]["httpGet"]["path"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    limits = Limits()
    assert pod["spec"]["terminationGracePeriodSeconds"] > limits.linger_seconds + limits.drain_seconds + 5
    assert deployment["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"] == service["spec"]["selector"]


def test_the_dockerfile_runs_without_root_and_serves_the_port_that_it_exposes() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    instructions = re.findall(r"^[A-Z]+", text, re.MULTILINE)
    assert instructions.index("USER") < instructions.index("ENTRYPOINT")
    assert re.search(r"^USER (\d+)$", text, re.MULTILINE)[1] in (FOLDER / "kubernetes.yaml").read_text()
    port = re.search(r"^EXPOSE (\d+)$", text, re.MULTILINE)[1]
    assert f'"--port", "{port}"' in text
    assert f"127.0.0.1:{port}/v2/health/ready" in text
    assert "[serve]" in text
