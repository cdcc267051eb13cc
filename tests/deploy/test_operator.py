"""The operator's kit: the unit, the alerts and the dashboard name only what the service really has."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.observability.metrics import Telemetry
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
METRIC = re.compile(r"\b(?:presage|process)_[a-z_]+\b")


def exposed() -> set[str]:
    """Every name that a query may use: histograms have three, counters end in _total."""
    names = {"process_resident_memory_bytes"}  # of Linux alone
    for family in Telemetry.create().registry.collect():
        if family.type == "histogram":
            names |= {f"{family.name}{end}" for end in ("_bucket", "_sum", "_count")}
        elif family.type == "counter":
            names.add(f"{family.name}_total")
        else:
            names.add(family.name)
    return names


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana/presage.json").read_text())
    return found


def test_alerts_use_metrics_that_the_service_exposes() -> None:
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    used = {name for rule in rules for name in METRIC.findall(rule["expr"])}
    assert used
    assert used - exposed() == set()
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)


def test_the_dashboard_uses_metrics_that_the_service_exposes() -> None:
    expressions = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    used = {name for expression in expressions for name in METRIC.findall(expression)}
    assert len(expressions) > 15
    assert used - exposed() == set()


def test_the_dashboards_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian package prometheus)")
@pytest.mark.parametrize("command", [("rules", "alerts.yml"), ("config", "prometheus.yml")])
def test_promtool_accepts(command: tuple[str, str]) -> None:
    kind, name = command
    done = subprocess.run(
        ["promtool", "check", kind, str(DEPLOY / "prometheus" / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def unit() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(DEPLOY / "systemd/presage.service")
    return parsed


def test_the_unit_waits_longer_than_the_service_takes_to_stop() -> None:
    from server.config import Settings

    assert float(unit()["Service"]["TimeoutStopSec"]) > Settings().shutdown_grace_s
    assert unit()["Service"]["ExecStart"].endswith("presage serve")
    assert unit()["Service"]["RestartPreventExitStatus"] == "2"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "systemd/presage.service").read_text()
    copy = tmp_path / "presage.service"
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "presage.service" in line]
    assert complaints == []
