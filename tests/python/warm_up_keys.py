"""Prints what serving would compile that the warm-up did not, one kernel a line; run by test_warm_up.py.

In a process of its own: Triton must compile for a pretended device here, where other tests run its interpreter. A hook
takes the place of every compilation, so that nothing is compiled and nothing runs.

    python warm_up_keys.py MODEL_DIR {default,deterministic}
"""

import importlib.util
import os
import random
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

from triton import knobs  # noqa: E402

from runtime.basemodel import load_model  # noqa: E402
from runtime.engine.model_runner import ModelRunner  # noqa: E402
from runtime.engine.warm_up import WarmUpStep, warm_up_steps  # noqa: E402
from runtime.kernels import linear_config, ops  # noqa: E402

MAX_NUM_SEQS, MAX_NUM_TOKENS = 40, 300
TILE = {"block_m": 16, "block_n": 64, "block_k": 64, "num_warps": 4}


def pretend_device(arch):
    path = Path(__file__).parents[2] / "tools" / "check_kernels.py"
    spec = importlib.util.spec_from_file_location("check_kernels", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_kernels"] = module
    spec.loader.exec_module(module)
    module.pretend_device(arch)


def tuned(device, op, key):
    """A matrix kernel of its own for every number of rows that a table can have."""
    if op != "linear":
        return None
    num_out, num_in, bucket = map(int, key.removesuffix("_deterministic").split("x"))
    deterministic = key.endswith("_deterministic")
    splits = linear_config.deterministic_splits(num_out, num_in) if deterministic else 2
    return {**TILE, "num_stages": bucket.bit_length(), "splits": splits} if bucket > 1 else None


def run_steps(runner, steps):
    """The names and keys of what these steps would compile."""
    found = set()

    def instead_of_compiling(*, key, repr, **_):
        found.add((repr.partition("[")[0], str(key)))
        return True

    knobs.runtime.jit_cache_hook = instead_of_compiling
    for step in steps:
        runner.run_padding(step)
    return found


def served_steps():
    """Any batch, alone and with prefills of any length."""
    rng = random.Random(0)
    for num_rows in range(1, MAX_NUM_SEQS + 1):
        yield WarmUpStep(num_rows, num_rows, False)
        yield WarmUpStep(num_rows, num_rows, True)
        for _ in range(4):
            yield WarmUpStep(num_rows, rng.randint(num_rows, MAX_NUM_TOKENS), True)
    for num_tokens in range(1, MAX_NUM_TOKENS + 1):
        yield WarmUpStep(1, num_tokens, True)


def main(model_dir, mode):
    pretend_device(90)
    linear_config.lookup = tuned
    for name in ops.__all__:
        setattr(ops, name, ops._cuda_op(name))
    model = load_model(
        model_dir,
        max_total_token_num=64,
        load_format="dummy",
        dtype="bfloat16",
        deterministic=mode == "deterministic",
    )
    runner = ModelRunner(
        model,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_TOKENS,
        num_plan_buffers=1,
        plan_capacity=64,
        enforce_eager=True,
    )
    warm = run_steps(runner, warm_up_steps(MAX_NUM_SEQS, MAX_NUM_TOKENS, with_decode=True))
    print(len(warm), "kernels are warm", file=sys.stderr)
    print(*sorted(run_steps(runner, served_steps()) - warm), sep="\n", end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
