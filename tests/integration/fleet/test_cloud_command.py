"""`rayburst dev cloud`: up with a recorded market, status, a command inside, down; nothing left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from support import wait_for

from rayburst.dev.cloud import daemon
from rayburst.dev.cloud.box import why_not
from rayburst.dev.cloud.script import parse_script
from rayburst.fleet import processes

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(why_not() is not None, reason=f"no box here: {why_not()}"),
]


PAGE = Path(__file__).parents[3] / "docs" / "cloud-in-a-box.md"


def rayburst(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "rayburst", "dev", "cloud", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cloud_comes_up_plays_a_trace_and_goes_without_a_trace(tmp_path: Path) -> None:
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    recorded = {"metadata": {"gap_seconds": 600.0}, "data": [1, 0, 1]}
    (tmp_path / "zone.json").write_text(json.dumps(recorded))
    words = ("--trace", "zone.json", "--per-zone", "2", "--speed", "100", "--notice", "1")
    said = rayburst(tmp_path, "up", *words, "--hosts", "1", "--zones", "1", "--no-store")
    assert "kind: ec2" in said and "rack-1 at 10.77.1." in said
    folder = tmp_path / ".rayburst-cloud"
    try:
        told = daemon.status(folder)
        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
        ec2 = boto3.client(
            "ec2", region_name="us-east-1", endpoint_url=told["endpoint_here"], **keys
        )
        request = {
            "ImageId": told["image"],
            "InstanceType": "m6i.large",
            "MinCount": 1,
            "MaxCount": 1,
        }
        subnet = told["subnets"]["us-east-1a"]
        ec2.run_instances(**request, SubnetId=subnet, InstanceMarketOptions={"MarketType": "spot"})

        def host() -> dict[str, object] | None:
            found = daemon.status(folder)["instances"]
            return found[0] if found and found[0]["pid"] else None

        address = wait_for(host, what="the instance to be up")["address"]
        ssh = ["ssh", "-i", told["key"], "-o", f"UserKnownHostsFile={told['known_hosts']}"]
        inside = rayburst(tmp_path, "run", "--", *ssh, f"root@{address}", "hostname")
        assert inside.strip().startswith("i-")
        assert "rack-1" in rayburst(tmp_path, "status")
        wait_for(
            lambda: daemon.status(folder)["instances"] == [] or None,
            what="the market to take it, 6 s from the start",
            timeout_s=30,
        )
        wait_for(lambda: daemon.status(folder)["script_done"] or None, what="the end of the trace")
        assert daemon.status(folder)["capacity"] == {"* us-east-1a spot": 2}
    finally:
        assert "none left" in rayburst(tmp_path, "down")
    assert processes.owned(folder) == []
    after = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert after == links


def test_the_pages_blocks_work(tmp_path: Path) -> None:
    (script,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(parse_script(script, source=PAGE.name)) == len(script.splitlines())
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    code = code.replace("/var/tmp/cloud", str(tmp_path / "cloud"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "rack-1"


def test_who_is_not_root_is_told_so(tmp_path: Path) -> None:
    """The same command as a user without rights."""
    code = (
        "import os, sys\n"
        "from rayburst.cli import main\n"
        "os.geteuid = lambda: 1000\n"
        "sys.argv = ['rayburst', 'dev', 'cloud', 'up']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 1
    assert "needs Linux and root" in done.stderr
