"""kernels/step_plan.py repeats constants of csrc/include/runtime/step_plan.h, for kernels cannot import `_core`."""

from runtime import _core
from runtime.kernels import step_plan

# name in _core.step_plan -> name in the kernels, where the prefixes below do not tell
RENAMED = {"HEADER_FLAGS": "STEP_FLAGS", "NEW_ROW_SEED_LOW": "REC_SEED", "MAX_MASKED_IDS": "MAX_MASKED"}
NOT_IN_KERNELS = {
    "HEADER_VERSION",
    "HEADER_HASH_LOW",
    "HEADER_HASH_HIGH",
    "HEADER_REPEATED_TOKENS",
    "NEW_ROW_SEED_HIGH",
}


def kernel_name(name):
    if name in RENAMED:
        return RENAMED[name]
    if name.endswith("_WORDS") and name != "HEADER_NUM_WORDS":
        return name
    for prefix, replacement in (("HEADER_", ""), ("NEW_ROW_", "REC_"), ("SAMPLE_", "")):
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def test_the_kernels_read_the_words_that_the_scheduler_writes():
    core = {name: getattr(_core.step_plan, name) for name in dir(_core.step_plan) if name.isupper()}
    assert len(core) > 50
    for name in core.keys() - NOT_IN_KERNELS:
        assert getattr(step_plan, kernel_name(name)) == core[name], name
    assert core["NEW_ROW_SEED_HIGH"] == step_plan.REC_SEED + 1
