"""With deterministic=True a row's logits are the same bits, whatever runs beside it and however it was cut."""

import pytest
import torch

TOKENS = [(11 * i * i + 5 * i) % 67 for i in range(300)]  # more than one split of 256
LAST = len(TOKENS) - 1


def alone(driver):
    return driver.step({0: TOKENS})[0]


def decoded(driver):
    driver.step({0: TOKENS[: LAST - 3]})
    for token in TOKENS[LAST - 3 :]:
        logits = driver.step({0: [token]}, decode=True)[0]
    return logits


def in_chunks_beside_others(driver):
    driver.step({1: [5, 6, 7], 0: TOKENS[:37]})
    driver.step({1: [8], 0: TOKENS[37:259], 2: TOKENS[:19]})
    return driver.step({2: [1, 2], 1: [3], 0: TOKENS[259:]})[0]


def decoded_beside_others(driver):
    driver.step({1: TOKENS[:270], 2: TOKENS[:3], 3: [9], 0: TOKENS[:LAST]})
    return driver.step({1: [4], 3: [5], 0: TOKENS[LAST:], 2: [6]}, decode=True)[0]


def over_a_cached_prefix(driver):
    driver.step({1: TOKENS[:289]})
    driver.b_loc[0], driver.lengths[0] = driver.b_loc[1], 288  # whole blocks of every size tried
    driver.b_loc[0, 288 // driver.model.block_size :] = 0
    return driver.step({0: TOKENS[288:]})[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama-long", "bloom-6"])
def test_same_bits(tiny, rows, name, dtype):
    def run(way, block_size):
        options = {"deterministic": True, "dtype": dtype, "max_model_len": 320, "max_total_token_num": 1024}
        return way(rows(tiny(name).load(block_size=block_size, **options)))

    expected = run(alone, 4)
    for way, block_size in [
        (alone, 1),
        (decoded, 16),
        (in_chunks_beside_others, 4),
        (decoded_beside_others, 16),
        (over_a_cached_prefix, 16),
        (over_a_cached_prefix, 1),
    ]:
        assert torch.equal(run(way, block_size), expected), way.__name__


def test_close_to_the_fast_path(tiny, rows):
    fast, exact = (rows(tiny("llama-long").load(max_model_len=320, deterministic=d)) for d in (False, True))
    torch.testing.assert_close(alone(fast), alone(exact), rtol=0, atol=1e-5)
