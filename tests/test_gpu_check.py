"""What the check for GPUs does with what goes wrong; ``test_pretended_gpu.py`` runs it where all is well."""

from __future__ import annotations

import json
import subprocess
import time

import gpu_check
import pytest


def broken():
    raise RuntimeError("no kernel image is available")


@pytest.fixture
def soon():
    return time.monotonic() + 60


def test_a_failure_is_named_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    def part(quick, until):
        return {"one": gpu_check.attempt(until, broken), "two": gpu_check.attempt(until, dict, {"gap": 0.0})}

    monkeypatch.setattr(gpu_check, "PARTS", {"ways": part, "engine": part})
    assert gpu_check.main(["--results", str(tmp_path)]) == 1
    (file,) = tmp_path.iterdir()
    record = json.loads(file.read_text(encoding="utf-8"))
    named = "RuntimeError: no kernel image is available"
    assert record["failures"] == {"ways, one": named, "engine, one": named}
    assert record["engine"]["two"]["gap"] == 0.0
    assert {"command", "commit", "machine", "versions"} <= record.keys()
    assert f"FAILED engine, one: {named}" in capsys.readouterr().out


def test_numbers_that_are_not_the_cpus_are_a_failure():
    losses = iter([[0.69, 0.5], [0.69, 0.51]] * 2)
    assert "failed" in gpu_check.compared_with_cpu(lambda device: next(losses), allowed=1e-3)
    assert "failed" not in gpu_check.compared_with_cpu(lambda device: next(losses), allowed=2e-2)


def test_losses_that_are_no_numbers_are_a_failure():
    assert "failed" in gpu_check.compared_with_cpu(lambda device: [0.69, float("nan")], allowed=1e-3)


def test_after_eight_minutes_nothing_is_begun(soon):
    assert "8 minutes are over" in gpu_check.attempt(time.monotonic() - 1, dict)["failed"]
    assert "failed" not in gpu_check.attempt(soon, dict)


def test_a_process_that_fails_or_hangs_is_reported(soon):
    with pytest.raises(RuntimeError, match="no such thing"):
        gpu_check.command(["-c", "raise SystemExit('no such thing')"], soon)
    with pytest.raises(subprocess.TimeoutExpired):
        gpu_check.command(["-c", "import time; time.sleep(60)"], time.monotonic())
