"""benchmarks/memory.py: every row is started with its limit, one that fails says why, and the table compares pictures."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import memory as script

PROCESS = """
import json, os, sys
from PIL import Image
work = json.loads(sys.argv[1])
if work.get("quantize") == "int4":
    sys.exit("no room")
print("ready", flush=True)
assert sys.stdin.readline() == "go\\n"
Image.new("RGB", (4, 4), (100, 100, 100 if not work.get("quantize") else 103)).save(work["picture"])
share = float(os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"])
print(json.dumps({"ms": 1500.0, "first_s": 40.0, "peak_gib": 64 * share, "device": "chip", "version": "jax 1"}))
"""


@pytest.mark.parametrize("together", [(), ("--at-once",)])
def test_rows_run_apart_and_are_compared_with_the_first(tmp_path, monkeypatch, together):
    popen = subprocess.Popen
    monkeypatch.setattr(script, "card_memory", lambda: 64.0)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", PROCESS, command[-1]], **options))
    output = tmp_path / "table.md"
    script.main(["-o", str(output), "--limit", "60", *together])
    rows = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == [name for name, *_ in script.CASES]
    assert [row.get("psnr") for row in rows[:3]] == [None, math.inf, pytest.approx(10 * math.log10(255**2 / 3))]
    text = output.read_text()
    assert "| --quantize int8 --offload | 8 GiB | 7.20 GiB | 1.500 | 40 | 43.4 |" in text
    assert "| bfloat16 --offload | 12 GiB | 10.80 GiB | 1.500 | 40 | the same |" in text
    assert text.count("- failed: --quantize int4") == 2
    assert "exit code 1: no room" in text


def test_a_row_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    popen = subprocess.Popen
    monkeypatch.setattr(script, "CASES", script.CASES[:1])
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", "import time; time.sleep(60)"], **options)
    )
    script.main(["-o", str(tmp_path / "table.md"), "--rehearse", "--limit", "0.5"])
    assert "- failed: bfloat16: took longer than 0 s" in (tmp_path / "table.md").read_text()


def test_psnr_of_files(tmp_path: Path):
    for name, grey in (("a", 10), ("b", 15)):
        Image.new("L", (8, 8), grey).save(tmp_path / f"{name}.png")
    assert script.psnr(tmp_path / "a.png", tmp_path / "b.png") == pytest.approx(34.15, abs=0.01)
