"""Compilation side by side, for a pretended device; in processes of their own, for here Triton interprets."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
sys.path.insert(0, "tools")
import check_kernels
check_kernels.make_importable()
check_kernels.pretend_device(90)

import torch
from triton import knobs
from runtime.kernels.compile_ahead import compile_ahead
from runtime.kernels.embedding import embedding
from runtime.kernels.rms_norm import rms_norm
from runtime.kernels.silu_and_mul import silu_and_mul

compiled = []
knobs.runtime.jit_post_compile_hook = lambda *, repr, **_: compiled.append(repr.partition("[")[0])

def launch():
    x = torch.empty(8, 1024, dtype=torch.bfloat16)
    return rms_norm(x, x, x[0], 1e-5), silu_and_mul(x), embedding(torch.empty(8, dtype=torch.int32), x)

for again in range(2):
    with compile_ahead(2, rank=int(sys.argv[1]), size=2):
        launch()
    print(*sorted(compiled))
try:
    launch()  # compiled, so that nothing is left but to launch, which nothing here can
except Exception:
    print("launched", len(compiled))
try:
    with compile_ahead(2):
        rms_norm(torch.empty(8, 1024), None, torch.empty(1024, dtype=torch.complex64), 1e-5)
except Exception as error:
    print("failed", type(error).__name__)
from triton.runtime.jit import JITFunction
print(JITFunction.run.__qualname__)
"""


def test_kernels_are_compiled_once_and_not_run(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank)], cwd=ROOT, env=environment, text=True, stdout=-1, stderr=-1
        )
        for rank in range(2)
    ]
    for rank in ranks:
        out, err = rank.communicate(timeout=120)
        assert rank.returncode == 0, err
        first, second, launched, failed, name = out.splitlines()
        assert first == second and len(first.split()) == 3
        assert launched == "launched 3" and failed.startswith("failed") and name == "JITFunction.run"
