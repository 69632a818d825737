"""With deterministic=True a request's tokens and logprobs are the same whoever its neighbours are."""

import concurrent.futures
import json
import os
import random
import threading
import time

import httpx
import pytest

JSON = {"content-type": "application/json"}
NUM_SCHEDULES = int(os.environ.get("RUNTIME_TEST_SCHEDULES", 2))
NUM_SIDE_BY_SIDE, NUM_ACTORS = 8, 3
VICTIMS = [
    {"prompt": "12+35=", "temperature": 0, "max_tokens": 24, "ignore_eos": True, "logprobs": 3},
    {
        "prompt": "reverse(abcdefgh)=",
        "temperature": 1.5,
        "seed": 11,
        "max_tokens": 40,
        "ignore_eos": True,
        "logprobs": 0,
    },
    {"prompt": "sort(9,1,5)=", "temperature": 1.0, "seed": 3, "top_k": 5, "n": 2, "max_tokens": 16, "logprobs": 1},
]


def neighbours(rng):
    """Requests that are hostile, one way or the other."""
    long = {"prompt": "x" * rng.randrange(1, 800), "max_tokens": 200, "ignore_eos": True}
    return [
        long,
        {**long, "n": 4, "temperature": 2, "frequency_penalty": 2, "logit_bias": {"22": 100, "23": -100}},
        {**long, "deadline_s": 0.05},
        {**long, "stop": ["aa", "ab"], "min_tokens": 5, "logprobs": 20, "echo": True},
        {"prompt": [rng.randrange(443) for _ in range(rng.randrange(1, 900))], "max_tokens": 50},
        {"prompt": "\ud800"},
        {"prompt": [99999]},
        {**long, "stream": True},  # and gone after a moment
    ]


def act(url, rng, stop):
    with httpx.Client(base_url=url) as client:
        while not stop.is_set():
            body = rng.choice(neighbours(rng))
            try:
                client.post(
                    "/v1/completions", content=json.dumps(body), headers=JSON, timeout=rng.choice([0.05, 0.3, 5])
                )
            except httpx.HTTPError:
                pass


def answer(client, body):
    response = client.post("/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["choices"]


@pytest.fixture(scope="module")
def alone(server):
    with httpx.Client(base_url=server.url) as client:
        return [answer(client, body) for body in VICTIMS]


@pytest.fixture
def hostile_neighbours(server):
    stop = threading.Event()
    actors = [threading.Thread(target=act, args=(server.url, random.Random(i), stop)) for i in range(NUM_ACTORS)]
    for actor in actors:
        actor.start()
    yield
    assert all(actor.is_alive() for actor in actors)
    stop.set()
    for actor in actors:
        actor.join(30)


def test_neighbours_do_not_show(server, hostile_neighbours, alone):
    """Schedules run side by side: each is the others' neighbour too, at another point of its answers."""

    def schedule(seed):
        rng = random.Random(seed)
        with httpx.Client(base_url=server.url) as client:
            for i in rng.sample(range(len(VICTIMS)), len(VICTIMS)):
                time.sleep(rng.uniform(0, 0.02))
                assert answer(client, VICTIMS[i]) == alone[i], f"schedule {seed}"

    with concurrent.futures.ThreadPoolExecutor(NUM_SIDE_BY_SIDE) as pool:
        list(pool.map(schedule, range(NUM_SCHEDULES)))
