"""Tensor parallelism from C++: Python's tokens, and failures that name rank and step and leave no process."""

import os
import subprocess

from ranks import all_gone, rank_pids, runs


def test_in_cpp(build_folder, python_outputs, failing_models):
    expected = python_outputs(tensor_parallel_size=2)
    environment = {**os.environ, **failing_models, "EXPECTED_OUTPUTS": str(expected)}
    command = [build_folder / "test_engine", "--gtest_filter=EngineRanksTest.*", "--gtest_brief=1"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SKIPPED" not in result.stdout


def test_no_rank_outlives_the_program(build_folder):
    command = [build_folder / "bench_engine", "device=cpu", "tensor_parallel_size=2", "num_kv_blocks=64"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        program.stdin.write("4 0.0 0 5 6 7\n\n")  # a request, and that it is the last of its run
        program.stdin.flush()
        assert float(program.stdout.readline().split()[0]) > 0
        (pid,) = rank_pids(program.pid)
        assert runs(pid)
        program.kill()
    assert all_gone([pid])
