"""The scheduler's policies side by side, in simulation: their figures are functions of the code."""

from pathlib import Path

import numpy as np
import pytest

from runtime.bench.admission import LENGTHS, admission, fairness, jain
from runtime.bench.scheduler import measure, measure_admission

LLAMA_8B = Path(__file__).parents[2] / "docs" / "benchmarks" / "configs" / "llama-3.1-8b"


def test_past_future_admission_fills_the_pool_and_recomputes_next_to_nothing():
    rows = list(admission(LLAMA_8B, 8000))
    plain = {row["scenario"].removeprefix("admission_"): row for row in rows if "watermark" in row}
    rows = [row for row in rows if not {"watermark", "admission_reserve"} & row.keys()]
    found = {(row["scenario"].removeprefix("admission_"), row["admission"]): row for row in rows}
    for name in ("azure-conversation", "arxiv", "uniform"):
        row = found[name, "past_future"]
        assert row["recomputed_pct"] <= 1.0, name
        assert row["held_pct"] >= 94.0, name  # 95 with so many requests that the start counts little
        assert row["goodput_per_s"] >= found[name, "none"]["goodput_per_s"] * 0.995, name
        assert plain[name]["goodput_ratio"] == 1.0, name
        assert plain[name]["preemptions"] > found[name, "none"]["preemptions"], name
        assert found[name, "max_tokens"]["held_pct"] < 80.0, name
        assert found[name, "max_tokens"]["preemptions"] == found[name, "oracle"]["preemptions"] == 0, name
    assert found["decode-heavy", "past_future"]["goodput_ratio"] >= 1.2
    assert {name for name, _ in found} == set(LENGTHS)


def test_fair_sharing_serves_both_tenants_alike_at_no_cost():
    fair, fcfs = fairness(LLAMA_8B)
    assert fair["jain"] >= 0.95
    assert fcfs["jain"] < 0.75, "the test itself is unfair without the policy"
    assert fair["total_tok_s"] >= 0.95 * fcfs["total_tok_s"]


def test_jain_is_one_for_equal_shares():
    assert jain(np.array([5.0, 5.0])) == pytest.approx(1.0)
    assert jain(np.array([1.0, 0.0])) == pytest.approx(0.5)


def test_the_scheduler_is_measured_with_every_request_running():
    assert measure(64, num_steps=200)["steps"] == 200
    assert set(measure_admission(16, num_steps=5)) == {"admission_us"}
