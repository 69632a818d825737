"""Step times of simulations: from what a device allows, and from measured steps."""

import json
from pathlib import Path

import numpy as np
import pytest

from runtime import _core
from runtime.errors import ConfigError
from runtime.simulation import (
    Device,
    StepLog,
    StepTimes,
    calibrate,
    fit_step_times,
    load_calibration,
    nnls,
    roofline,
)

LLAMA_8B = Path(__file__).parents[2] / "docs" / "benchmarks" / "configs" / "llama-3.1-8b"
QWEN_06B = LLAMA_8B.with_name("qwen3-0.6b")


def decode_s(times, batch, context):
    tiles = batch * -(-context // _core.StepFeatures.TILE_LEN)
    return times.model().seconds(_core.StepFeatures(batch, batch, batch, tiles, 0))


def refusal(call, *args, **options):
    with pytest.raises(ConfigError) as refused:
        call(*args, **options)
    return str(refused.value)


class TestRoofline:
    # milliseconds: bytes and operations of the published shapes at 4.3 TB/s and 788 TFLOP/s
    @pytest.mark.parametrize("batch, context, expected", [(1, 1128, 3.53), (8, 1128, 3.77), (256, 1128, 13.7)])
    def test_decode_of_an_8b_model(self, batch, context, expected):
        assert decode_s(roofline(LLAMA_8B), batch, context) * 1e3 == pytest.approx(expected, rel=0.02)

    def test_prefill_of_an_8b_model(self):
        tiles = 2 * sum(range(1, 33))  # two prompts of 4096
        seconds = roofline(LLAMA_8B).model().seconds(_core.StepFeatures(2, 0, 8192, 0, tiles))
        assert 8192 / seconds == pytest.approx(52.4e3, rel=0.02)

    def test_tied_embeddings_count_once_and_ranks_share(self):
        assert decode_s(roofline(QWEN_06B), 1, 1128) * 1e3 == pytest.approx(0.31, rel=0.03)
        alone, two = roofline(LLAMA_8B), roofline(LLAMA_8B, tp=2)
        assert 1.9e-3 < decode_s(two, 1, 1128) < 2.0e-3
        assert two.kv_tokens > 2 * alone.kv_tokens

    def test_pool_holds_what_the_weights_leave(self):
        assert roofline(LLAMA_8B).kv_tokens == pytest.approx(896_912, rel=0.01)
        assert roofline(LLAMA_8B, Device(memory=16e9)).kv_tokens == 0

    def test_refuses_what_cannot_be(self):
        assert "tp=3: must divide the model's 32 heads" in refusal(roofline, LLAMA_8B, tp=3)
        assert refusal(Device, bandwidth=0.0) == "bandwidth=0.0: must be above 0"


class TestCalibration:
    def test_nnls_is_exact_where_the_solution_is_positive(self):
        rng = np.random.default_rng(0)
        a, x = rng.random((40, 6)), np.array([0.5, 0.0, 2.0, 0.0, 1.0, 3.0])
        assert nnls(a, a @ x) == pytest.approx(x, abs=1e-9)

    def test_nnls_keeps_to_the_conditions_of_its_optimum(self):
        rng = np.random.default_rng(1)
        for _ in range(30):
            a, b = rng.standard_normal((30, 8)), rng.standard_normal(30)
            x = nnls(a, b)
            gradient = a.T @ (b - a @ x)
            assert (x >= 0).all()
            assert gradient[x > 0] == pytest.approx(0.0, abs=1e-8)
            assert (gradient[x == 0] <= 1e-8).all()

    def test_a_fit_predicts_the_run_it_was_made_from(self):
        truth = roofline(LLAMA_8B, Device(launch_s=2e-4, host_s=1e-4)).model()
        rng = np.random.default_rng(2)
        steps = []
        for _ in range(400):
            decodes, prompt = int(rng.integers(0, 256)), int(rng.integers(0, 4096))
            features = dict(
                num_rows=decodes + 1,
                num_decode_rows=decodes,
                num_tokens=decodes + prompt + 1,
                num_decode_tiles=decodes * int(rng.integers(1, 60)),
                num_prefill_tiles=(prompt // 128 + 1) * 16,
                num_repeated_tiles=0,
            )
            steps.append(features | {"seconds": truth.seconds(_core.StepFeatures(**features))})
        fitted = fit_step_times(steps).model()
        errors = [
            fitted.seconds(_core.StepFeatures(**{k: v for k, v in step.items() if k != "seconds"})) / step["seconds"]
            - 1
            for step in steps
        ]
        assert np.sqrt(np.mean(np.square(errors))) < 0.03

    def test_a_recorded_run_is_calibrated(self, tmp_path):
        scheduler = _core.Scheduler(_core.SchedulerConfig(4, 64, 16, 256, 100), _core.BlockAllocator(64))
        plans = [np.zeros(scheduler.plan_capacity, dtype=np.int32) for _ in range(2)]
        scheduler.attach_plan_buffers([(plan.ctypes.data, plan.size) for plan in plans])
        for request_id in range(3):
            scheduler.submit(request_id, [1] * 90, _core.RequestParams(max_tokens=20))
        log = StepLog(tmp_path / "steps.jsonl")
        for step in range(1, 20):
            plan = plans[scheduler.schedule()]
            log.add(plan, 0.002 + 1e-5 * int(plan[6]))
            scheduler.update(step, np.full(int(plan[4]), 7, dtype=np.int32))
        log.close()
        times = calibrate(tmp_path / "steps.jsonl")
        seconds = times.model().seconds(_core.StepFeatures(1, 0, 64, 0, 1))
        assert seconds == pytest.approx(0.00264, rel=0.02)
        assert "19 steps" in times.source

    def test_files_come_back_as_they_were(self, tmp_path):
        times = roofline(LLAMA_8B)
        times.save(tmp_path / "llama.json")
        assert load_calibration(tmp_path / "llama.json") == times

    @pytest.mark.parametrize(
        "change, sentence",
        [
            ({"version": 1}, "is a calibration file of version 1: this runtime reads version 2"),
            ({"version": None}, "is a calibration file without a version: this runtime reads version 2"),
            ({"buckets": None}, "no buckets: a calibration file must have them"),
            ({"host_s": -1.0}, "host_s=-1: must be at least 0 seconds"),
            ({"row_s": "x"}, "row_s='x': must be a number"),
            ({"repeated_tile_share": 1.5}, "repeated_tile_share=1.5: must be between 0 and 1"),
            ({"buckets": [[1, 0.1]]}, "must be lists of one integer and three numbers"),
            ({"buckets": [[4, 0, 0, 0], [2, 0, 0, 0]]}, "num_tokens of a bucket=2: must be above 4"),
            ({"colour": 1}, "unknown field 'colour'"),
        ],
    )
    def test_wrong_files_are_refused(self, tmp_path, change, sentence):
        path = tmp_path / "calibration.json"
        StepTimes(buckets=((1, 0.001, 0.0, 0.0),)).save(path)
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        assert sentence in refusal(load_calibration, path)

    def test_wrong_steps_are_refused(self, tmp_path):
        path = tmp_path / "steps.jsonl"
        path.write_text('{"num_rows": 1, "secnds": 1}\n')
        assert "line 1: unknown field 'secnds'; did you mean 'seconds'?" in refusal(calibrate, path)
        path.write_text('{"num_rows": -1}\n')
        assert "line 1: num_rows=-1: must be a number between 0 and" in refusal(calibrate, path)
        path.write_text("\n")
        assert "has 0 steps: at least 8 are needed" in refusal(calibrate, path)
