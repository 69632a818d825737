"""Ways to run the same requests, none of which may change an answer."""

import pytest

from runtime.engine import Knobs

under_each_schedule = pytest.mark.parametrize(
    "arguments, knobs",
    [
        ({}, Knobs()),
        ({"max_num_batched_tokens": 16, "max_num_seqs": 4}, Knobs(num_steps_in_flight=2)),
        ({"max_num_batched_tokens": 24}, Knobs(preempt_every=2, num_steps_in_flight=2)),
        ({"num_kv_blocks": 64, "admission": "none"}, Knobs(num_steps_in_flight=2)),
    ],
    ids=["batch", "chunks-async", "preempt-async", "few-blocks-async"],
)
