"""The data benchmark runs at a small size, and its own sums hold."""

import json
import os
import subprocess
import sys

from lib.files import ROOT


def test_the_data_benchmark_accounts_for_every_row(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.data",
        "--rows",
        "1500",
        "--compare-rows",
        "200",
        "--malformed",
        "1000",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OUTPUTS": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "bench" / "data.json").read_text())
    full = found["full"]["found"]
    assert full["read"] == 1500 and 1400 < full["kept"] < 1500 and full["duplicate"] > 20 and full["leaked"] > 0
    assert found["near"]["share_of_its_flags"] >= 0.95 and found["near"]["ratio"] > 1
    malformed = found["malformed"]
    assert malformed["crashes"] == 0 and malformed["accounted"] == 2000 and malformed["kinds"] >= 20
    assert [path.name for path in (tmp_path / "bench").iterdir()] == ["data.json"]
