"""`runtime bench serve`: against the built-in model's server, and against one that does what a script says."""

import asyncio
import json
import socket
import statistics
import threading

import pytest
from scripted_completions import ScriptedServer

from runtime.bench.load.plan import Arrivals
from runtime.cli.main import main

OPEN_LOOP = ("--rate", "200", "--num-requests", "8", "--in", "4", "--out", "3")


@pytest.fixture
def bench(capsys):
    """Runs the command; (exit code, the row or None, stderr)."""

    def run(*arguments):
        try:
            code = main(["bench", "serve", "--json", *map(str, arguments)])
        except SystemExit as exit_:
            code = exit_.code
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return run


@pytest.fixture
def scripted():
    """Starts a ScriptedServer; without a script every answer is good."""
    servers = []

    async def good(number, answer):
        answer.good()

    def start(script=good, **options):
        servers.append(ScriptedServer(script, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


# ---- the built-in model ---------------------------------------------------------------------------


def test_an_open_loop_counts_every_token(server, bench):
    load = ("--rate", 40, "--num-requests", 12, "--in", 9, "--out", 6, "--ignore-eos", "--slo-ttft", 60000)
    code, row, err = bench("--base-url", server.url, *load)
    assert code == 0, err
    assert (row["engine"], row["model"], row["scenario"]) == ("runtime", "builtin", "serve_r40")
    assert (row["requests"], row["succeeded"], row["errors"], row["refused_429"]) == (12, 12, {}, 0)
    assert (row["prompt_tokens"], row["output_tokens"]) == (12 * 9, 12 * 6)
    assert row["itl_tokens"] == "counted" and sum(count for _, count in row["itl_histogram"]) <= 12 * 5
    for name in ("ttft", "ttft_from_send", "tpot", "itl", "e2e", "e2e_from_send"):
        assert 0 < row[f"{name}_p50_ms"] <= row[f"{name}_p90_ms"] <= row[f"{name}_p99_ms"]
    assert row["ttft_from_send_p99_ms"] <= row["ttft_p99_ms"] <= row["e2e_p99_ms"]
    assert row["slo_met_pct"] == 100 and row["goodput_per_s"] == row["requests_per_s"]
    assert row["tok_s"] == pytest.approx(72 / row["s"], rel=0.01) and row["client_cpu_pct"] > 0
    assert {"device", "versions", "commit", "date"} <= set(row)


def test_a_closed_loop_keeps_its_clients_busy(server, bench):
    load = ("--concurrency", 3, "--num-requests", 7, "--in", 5, "--out", 4, "--ignore-eos", "--endpoint", "chat")
    code, row, err = bench("--base-url", f"{server.url}/v1/", *load)
    assert code == 0, err
    assert (row["scenario"], row["peak_open"], row["succeeded"], row["output_tokens"]) == ("serve_c3", 3, 7, 28)


def test_a_server_is_started_measured_and_ended(bench, monkeypatch):
    from runtime.bench.load import spawn

    started = []
    real = spawn.subprocess.Popen
    monkeypatch.setattr(spawn.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1])
    engine = ("--device", "cpu", "--num-kv-blocks", 128, "--max-num-seqs", 4)
    code, row, err = bench(
        "--spawn", "--offline-pair", *engine, "--num-requests", 4, "--in", 8, "--out", 8, "--ignore-eos"
    )
    assert code == 0, err
    assert (row["model"], row["tp"], row["rate"], row["peak_open"]) == ("builtin", 1, "inf", 4)
    assert row["pct_of_offline"] == pytest.approx(100 * row["tok_s"] / row["offline_tok_s"], abs=0.1)
    served = next(one for one in started if "serve" in one.args)
    assert served.returncode == 0 and "--max-num-seqs" in served.args


# ---- a script -------------------------------------------------------------------------------------


def test_a_stall_shows_from_the_scheduled_times(scripted, bench):
    """One request waits a second, and meanwhile no other is sent: who looks at the sending alone does not see it."""

    async def script(number, answer):
        if number == 50:
            await asyncio.sleep(1)
        answer.good()

    load = ("--rate", 100, "--cv", 0, "--concurrency", 1, "--num-requests", 200, "--warmup", 0)
    code, row, err = bench("--base-url", scripted(script).url, *load)
    assert code == 0, err
    assert row["ttft_p99_ms"] > 700 and row["late_p99_ms"] > 700 and row["e2e_p99_ms"] > 700
    assert row["ttft_from_send_p99_ms"] < row["ttft_p99_ms"] / 2
    assert row["late_p50_ms"] <= row["late_p99_ms"] <= row["late_max_ms"]


def test_errors_are_counted_by_kind(scripted, bench):
    async def script(number, answer):
        if number == 0:
            answer.whole(429, {"error": {"message": "full"}}, "retry-after: 7\r\n")
        elif number == 1:
            answer.whole(429, {"error": {"message": "full"}})
        elif number == 2:
            answer.whole(500, {"error": {"message": "broken"}})
        elif number == 3:
            answer.begin()
            answer.token()
            answer.close()
        elif number == 4:
            answer.begin()
            answer.event(b"{]")
            answer.end()
        elif number == 5:
            answer.begin()
            answer.event({"error": {"message": "the engine has stopped"}})
            answer.raw(b"0\r\n\r\n")
        elif number == 6:
            answer.begin()
            answer.token()
            answer.raw(b"0\r\n\r\n")
        elif number == 7:
            answer.raw(b"SSH-2.0-OpenSSH\r\n\r\n")
        elif number == 8:
            answer.whole(200, {"choices": []})
        elif number == 9:
            pass  # nothing, ever
        else:
            answer.good()

    load = ("--rate", 200, "--num-requests", 20, "--warmup", 0, "--timeout", 1)
    code, row, err = bench("--base-url", scripted(script).url, *load)
    assert code == 0, err
    assert (row["requests"], row["succeeded"], row["refused_429"]) == (20, 10, 2)
    expected = {"500": 1, "cut": 1, "garbage": 3, "stream_error": 1, "unfinished": 1, "timeout": 1}
    assert row["errors"] == expected
    assert (row["with_retry_after"], row["retry_after_max_s"]) == (1, 7)
    assert row["output_tokens"] == 30


def test_chunks_of_several_tokens_are_divided(scripted, bench):
    """0.4 s between chunks of four tokens are four times 0.1 s."""

    async def script(number, answer):
        answer.begin()
        answer.event({"choices": [{"text": "a"}], "usage": {"completion_tokens": 1}})
        await asyncio.sleep(0.4)
        answer.event({"choices": [{"text": ""}], "usage": {"completion_tokens": 5}})
        answer.end(5)

    code, row, err = bench("--base-url", scripted(script).url, "--concurrency", 1, "--num-requests", 1, "--warmup", 0)
    assert code == 0, err
    assert row["itl_tokens"] == "counted" and [count for _, count in row["itl_histogram"]] == [4]
    assert 100 <= row["itl_p50_ms"] < row["e2e_p50_ms"] / 2


def test_connections_are_used_again(scripted, bench):
    server = scripted()
    code, row, err = bench("--base-url", server.url, "--concurrency", 1, "--num-requests", 20)
    assert code == 0 and row["succeeded"] == 20, err
    assert server.num_connections == 1


def test_a_trace_says_what_is_sent(scripted, bench, tmp_path):
    trace = tmp_path / "monday.jsonl"
    common = {"prompt_len": 6, "prefix_id": 3, "prefix_len": 4}
    lines = [{"arrival_s": 0, "output_len": 2, **common}, {"arrival_s": 0.1, "output_len": 9, **common, "priority": 5}]
    trace.write_text("\n".join(map(json.dumps, lines)))
    server = scripted()
    code, row, err = bench("--base-url", server.url, "--trace", trace, "--warmup", 0, "--ignore-eos")
    assert code == 0, err
    assert row["scenario"] == "serve_monday.jsonl" and row["out"] == 5.5
    (first, one), (second, other) = server.requests
    assert "x-priority" not in first and second["x-priority"] == "5"
    assert one["prompt"][:4] == other["prompt"][:4] and one["prompt"][4:] != other["prompt"][4:]
    assert [len(one["prompt"]), one["max_tokens"], other["max_tokens"], other["ignore_eos"]] == [6, 2, 9, True]


def test_the_same_seed_sends_the_same(scripted, bench):
    sent = []
    for seed in (1, 1, 2):
        server = scripted()
        code, _, err = bench("--base-url", server.url, *OPEN_LOOP, "--seed", seed)
        assert code == 0, err
        sent.append(sorted(body["prompt"] for _, body in server.requests))
    assert sent[0] == sent[1] != sent[2]
    assert len({tuple(prompt) for prompt in sent[0]}) == 9  # the one that warms up included


def test_a_key_comes_from_the_environment(scripted, bench, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-key")
    server = scripted()
    code, row, _ = bench("--base-url", server.url, *OPEN_LOOP, "--api-key-env", "MY_KEY")
    assert code == 0 and server.requests[0][0]["authorization"] == "bearer secret-key"
    assert "secret" not in json.dumps(row)


def test_a_server_without_a_list_of_models_is_asked_by_name(scripted, bench):
    server = scripted(lists_models=False)
    assert bench("--base-url", server.url, *OPEN_LOOP)[0] == 2
    code, row, _ = bench("--base-url", server.url, *OPEN_LOOP, "--model-name", "mine")
    assert code == 0 and (row["engine"], row["model"]) == ("unknown", "mine")
    assert server.requests[0][1]["model"] == "mine"


def test_a_generator_at_its_limit_says_so(scripted, bench, monkeypatch):
    monkeypatch.setattr("runtime.bench.load.figures.BUSY_PCT", 0.0)
    code, row, err = bench("--base-url", scripted().url, *OPEN_LOOP)
    assert code == 0 and row["succeeded"] == 8 and "the load generator itself took" in err


def test_nothing_but_errors_is_an_error(scripted, bench):
    async def script(number, answer):
        answer.whole(500, {"error": {"message": "broken"}})

    code, row, err = bench("--base-url", scripted(script).url, *OPEN_LOOP, "--warmup", 0)
    assert code == 70 and row["errors"] == {"500": 8} and "none of 8 requests succeeded; the first: 500 broken" in err


def test_a_request_that_is_refused_is_said_before_the_load(scripted, bench):
    async def script(number, answer):
        answer.whole(400, {"error": {"message": "max_tokens=3: must be at most 2"}})

    server = scripted(script)
    code, row, err = bench("--base-url", server.url, *OPEN_LOOP)
    assert (code, row, len(server.requests)) == (2, None, 1)
    assert "400: max_tokens=3: must be at most 2" in err and len(err.splitlines()) == 1


# ---- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((), "exactly one of --base-url URL and --spawn [MODEL]"),
        (("--base-url", "http://127.0.0.1:1", "--spawn", "--rate", "1"), "exactly one of"),
        (("--base-url", "http://127.0.0.1:1"), "no load: give --rate R, --concurrency N"),
        (("--base-url", "http://127.0.0.1:1", "--rate", "0"), "--rate=0: must be above 0; nearest: 0.01"),
        (("--base-url", "http://127.0.0.1:1", "--rate", "nan"), "--rate=nan: must be above 0"),
        (("--base-url", "http://127.0.0.1:1", "--concurrency", "0"), "--concurrency=0: must be at least 1; nearest: 1"),
        (("--base-url", "http://127.0.0.1:1", "--rate", "1", "--in", "0"), "--in=0: must be at least 1; nearest: 1"),
        (("--base-url", "http://127.0.0.1:1", "--rate", "1", "--cv", "-1"), "--cv=-1: must be at least 0; nearest: 0"),
        (("--base-url", "http://127.0.0.1:1", "--rate", "1", "--duration", "0"), "--duration=0: must be above 0"),
        (("--base-url", "http://127.0.0.1:1", "--rate", "0.01", "--duration", "1"), "no request comes so early"),
        (("--base-url", "http://127.0.0.1:1", "--rate", "inf", "--duration", "1"), "--rate=inf sends all at once"),
        (("--base-url", "http://127.0.0.1:1", "--rate", "1", "--endpoint", "chatt"), "did you mean 'chat'"),
        (("--base-url", "http://127.0.0.1:1", "--scenario", "mixed_265"), "did you mean 'mixed_256'"),
        (("--base-url", "http://127.0.0.1:1", "--scenario", "mixed_256", "--in", "5"), "--in: a scenario says that"),
        (("--base-url", "127.0.0.1:8000", "--rate", "1"), "must be http://HOST:PORT"),
        (("--base-url", "http://me:pass@127.0.0.1:1", "--rate", "1"), "must be http://HOST:PORT"),
        (("--base-url", "http://127.0.0.1:99999", "--rate", "1"), "--base-url=http://127.0.0.1:99999: Port out of"),
        (("--base-url", "http://127.0.0.1:1", "--rate", "1"), "cannot connect to 127.0.0.1 port 1"),
        (("--base-url", "http://127.0.0.1:1", "--rate", "1", "--offline-pair"), "--offline-pair needs --spawn"),
        (("--base-url", "http://127.0.0.1:1", "--trace", "/nowhere.csv"), "cannot read /nowhere.csv"),
        (("--base-url", "http://127.0.0.1:1", "--raet", "1"), "unknown flag '--raet'; did you mean '--rate'"),
        (("--spawn", "/nowhere/model", "--rate", "1"), "no model folder /nowhere/model"),
    ],
)
def test_what_cannot_be_is_one_sentence(bench, arguments, sentence):
    code, row, err = bench(*arguments)
    assert code == 2 and row is None and sentence in err and len(err.splitlines()) == 1, err


def test_a_bad_trace_names_its_line(bench, tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_len,output_len\n0,5,5\n1,0,5\n")
    code, _, err = bench("--base-url", "http://127.0.0.1:1", "--trace", trace)
    assert code == 2 and "line 3: prompt_len='0': must be an integer between 1 and" in err


def test_a_wrong_url_is_said(server, bench):
    code, _, err = bench("--base-url", f"{server.url}/api", *OPEN_LOOP)
    assert code == 2 and "/api/v1/models has no list of models (status 404)" in err and "with or without /v1" in err
    code, _, err = bench("--base-url", server.url, *OPEN_LOOP, "--model-name", "bulitin")
    assert code == 2 and "--model-name=bulitin: the server has no such model; did you mean 'builtin'" in err


def test_what_does_not_speak_http_is_said(bench):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet():
            connection, _ = listener.accept()
            connection.sendall(b"220 mail.example ESMTP\r\n\r\n")
            connection.recv(1000)
            connection.close()

        thread = threading.Thread(target=greet)
        thread.start()
        code, _, err = bench("--base-url", f"http://127.0.0.1:{listener.getsockname()[1]}", *OPEN_LOOP)
        thread.join()
    assert code == 2 and "not HTTP" in err and "is the server up?" in err


# ---- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cv", [0.0, 1.0, 3.0])
def test_arrivals_have_the_rate_and_the_scatter(cv):
    times = list(Arrivals(rate=50.0, cv=cv, num_requests=20000).times())
    gaps = [after - before for before, after in zip([0.0, *times], times)]
    mean = statistics.fmean(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.08) and statistics.pstdev(gaps) / mean == pytest.approx(cv, abs=0.1)
    assert times == list(Arrivals(rate=50.0, cv=cv, num_requests=20000).times())
    bounded = list(Arrivals(rate=50.0, cv=cv, duration_s=1.0).times())
    assert bounded == [at for at in times if at <= 1.0]
