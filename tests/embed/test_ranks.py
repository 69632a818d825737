"""Tensor parallelism from C++: Python's tokens, and failures that name rank and step and leave no process."""

import os
import subprocess


def test_in_cpp(build_folder, python_outputs, failing_models):
    expected = python_outputs(tensor_parallel_size=2)
    environment = {**os.environ, **failing_models, "EXPECTED_OUTPUTS": str(expected)}
    command = [build_folder / "test_engine", "--gtest_filter=EngineRanksTest.*", "--gtest_brief=1"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SKIPPED" not in result.stdout
