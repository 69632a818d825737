"""The endpoints, as clients see them."""

import json

import httpx
import pytest
from scripted_server import ScriptedServer, make_tokenizer

from runtime import LLM, SamplingParams

GREEDY = {"temperature": 0, "max_tokens": 8}


def events_of(response):
    """The JSON of a stream's events, and whether it ended with [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line) for line in lines if line != "[DONE]"], lines[-1] == "[DONE]"


@pytest.fixture(scope="module")
def llm():
    with LLM(num_kv_blocks=512, deterministic=True) as llm:
        yield llm


def complete(client, **body):
    response = client.post("/v1/completions", json={**GREEDY, **body})
    assert response.status_code == 200, response.text
    return response.json()


def chat(client, text="12+35=", **body):
    return client.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": text}], "temperature": 0, **body}
    )


def test_a_completion(client, llm):
    found = complete(client, prompt="12+35=")
    assert found["object"] == "text_completion" and found["model"] == "builtin" and found["id"].startswith("cmpl-")
    assert found["choices"] == [{"index": 0, "text": "47", "logprobs": None, "finish_reason": "stop"}]
    prompt_tokens = len(llm.tokenizer.encode("12+35="))
    assert found["usage"]["prompt_tokens"] == prompt_tokens and found["usage"]["completion_tokens"] == 3


def test_prompts_come_in_four_shapes(client, llm):
    ids = [llm.tokenizer.encode(text) for text in ("12+35=", "40+2=")]
    expected = [["47"], ["47", "42"]]
    for one, many in (("12+35=", ["12+35=", "40+2="]), (ids[0], ids)):
        assert [choice["text"] for choice in complete(client, prompt=one)["choices"]] == expected[0]
        found = complete(client, prompt=many)["choices"]
        assert [choice["text"] for choice in found] == expected[1] and [c["index"] for c in found] == [0, 1]


def test_n_completions_of_each_prompt(client):
    body = {"prompt": ["the", "a"], "n": 3, "temperature": 2, "seed": 7, "max_tokens": 12, "ignore_eos": True}
    found = complete(client, **body)["choices"]
    assert [choice["index"] for choice in found] == list(range(6)) and len({choice["text"] for choice in found}) > 3
    assert complete(client, **body)["choices"] == found  # a seed fixes them
    alone = complete(client, **{**body, "prompt": "a", "n": 1, "seed": 8})["choices"]
    assert alone[0]["text"] == found[4]["text"]  # completion i has seed + i


def test_streams_add_up_to_the_whole(client):
    body = {"prompt": ["12+35=", "reverse(abcd)="], "n": 2, "logprobs": 1, **GREEDY}
    whole = complete(client, **body)
    response = client.post("/v1/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}})
    chunks, done = events_of(response)
    assert done and chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    for expected in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == expected["index"]]
        assert "".join(c["text"] for c in mine) == expected["text"]
        assert [c["finish_reason"] for c in mine][-1] == expected["finish_reason"]
        for name in ("tokens", "token_logprobs", "text_offset"):
            assert [value for c in mine for value in c["logprobs"][name]] == expected["logprobs"][name]
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_every_chunk_counts_its_tokens_when_asked(client, path):
    asked = {"prompt": "12+35="} if path == "completions" else {"messages": [{"role": "user", "content": "12+35="}]}
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**asked, "max_tokens": 6, "ignore_eos": True, "stream": True, "stream_options": options}
    chunks, done = events_of(client.post(f"/v1/{path}", json=body))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert done and counts == sorted(counts) and counts[-2:] == [6, 6] and len(set(counts)) > 2
    del options["continuous_usage_stats"]
    chunks, _ = events_of(client.post(f"/v1/{path}", json=body))
    assert ["usage" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_logprobs_are_the_engines(client, llm):
    found = complete(client, prompt="12+35=", logprobs=2)["choices"][0]["logprobs"]
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=2)
    output = llm.generate("12+35=", params)[0].outputs[0]
    expected = [position[token] for token, position in zip(output.token_ids, output.logprobs)]
    assert found["tokens"] == [logprob.decoded_token for logprob in expected]
    assert found["token_logprobs"] == pytest.approx([logprob.logprob for logprob in expected])
    assert [max(top, key=top.get) for top in found["top_logprobs"]] == found["tokens"]
    assert all(len(top) == 2 for top in found["top_logprobs"])


@pytest.mark.parametrize("stream", [False, True])
def test_echo_scores_the_prompt(client, llm, stream):
    text = "12+35=47"
    ids = llm.tokenizer.encode(text)
    expected = llm.score(ids[:1], ids[1:])
    body = {"prompt": text, "echo": True, "logprobs": 1, "max_tokens": 0, "temperature": 0, "stream": stream}
    response = client.post("/v1/completions", json=body)
    choice = events_of(response)[0][0]["choices"][0] if stream else response.json()["choices"][0]
    assert choice["text"] == text
    assert choice["logprobs"]["token_logprobs"][0] is None and choice["logprobs"]["top_logprobs"][0] is None
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
    with_output = complete(client, **{**body, "max_tokens": 1, "stream": False})
    assert with_output["choices"][0]["logprobs"]["token_logprobs"][: len(ids)] == choice["logprobs"]["token_logprobs"]
    assert len(with_output["choices"][0]["logprobs"]["tokens"]) == len(ids) + 1
    assert with_output["usage"]["completion_tokens"] == 1


def test_prompt_logprobs_by_token_id(client, llm):
    ids = llm.tokenizer.encode("12+35=")
    positions = complete(client, prompt="12+35=", prompt_logprobs=2)["choices"][0]["prompt_logprobs"]
    assert positions[0] is None and len(positions) == len(ids)
    assert all(str(token) in position and len(position) >= 2 for token, position in zip(ids[1:], positions[1:]))
    assert {"logprob", "rank", "decoded_token"} == set(positions[1][str(ids[1])])


def test_stop_strings_and_bias(client, llm):
    found = complete(client, prompt="reverse(abcd)=", stop=["b"])["choices"][0]
    assert (found["text"], found["finish_reason"]) == ("dc", "stop")
    found = complete(client, prompt="reverse(abcd)=", max_tokens=2)["choices"][0]
    assert (found["text"], found["finish_reason"]) == ("dc", "length")
    token = llm.tokenizer.token_to_id("x")
    assert complete(client, prompt="12+35=", logit_bias={str(token): 100}, max_tokens=3)["choices"][0]["text"] == "xxx"


def test_prompt_logprobs_have_the_limits_of_logprobs(client):
    response = client.post("/v1/completions", json={"prompt": "12+35=", "prompt_logprobs": 21})
    assert response.status_code == 400 and response.json()["error"]["param"] == "prompt_logprobs"
    assert "must be between 0 and 20; nearest: 20" in response.json()["error"]["message"]


def test_bad_words_do_not_come(client):
    for words in (["47"], ["4", " x"]):
        text = complete(client, prompt="12+35=", temperature=0, bad_words=words)["choices"][0]["text"]
        assert text and not any(word in text for word in words)
        assert chat(client, bad_words=words).json()["choices"][0]["message"]["content"] != "47"
    assert complete(client, prompt="12+35=", temperature=0, bad_words=[])["choices"][0]["text"] == "47"
    response = client.post("/v1/completions", json={"prompt": "12+35=", "bad_words": ["x"] * 129})
    assert response.status_code == 400 and response.json()["error"]["param"] == "bad_words"
    assert "must be at most 128 strings; nearest: 128" in response.json()["error"]["message"]


def test_a_chat(client):
    found = chat(client, logprobs=True, top_logprobs=2).json()
    assert found["object"] == "chat.completion" and found["id"].startswith("chatcmpl-")
    choice = found["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "47", "refusal": None}
    assert choice["finish_reason"] == "stop"
    first = choice["logprobs"]["content"][0]
    assert first["token"] == "4" and first["bytes"] == [52] and len(first["top_logprobs"]) == 2
    assert choice["logprobs"]["refusal"] is None


def test_a_chat_in_chunks(client):
    chunks, done = events_of(chat(client, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert done and deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "47"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop" and chunks[-1]["usage"]["completion_tokens"] == 3


def test_messages_may_be_parts_and_from_a_developer(client):
    parts = [{"type": "text", "text": "12+35="}]
    body = {"messages": [{"role": "user", "content": parts}], **GREEDY, "max_completion_tokens": 1}
    assert client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == "4"
    image = [{"type": "image_url", "image_url": {"url": "data:"}}]
    response = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": image}]})
    assert response.status_code == 400 and response.json()["error"]["param"] == "messages[0].content[0]"


REFUSED = [
    ({"temperature": 9}, "temperature", "between 0.01 and 2; nearest: 2"),
    ({"max_tokens": 0}, "max_tokens", "between 1"),
    ({"max_tokens": "many"}, "max_tokens", "max_tokens"),
    ({"n": 10**30}, "n", "n="),
    ({"top_p": True}, "top_p", "top_p"),
    ({"stop": [1]}, "stop", "a string or a list of strings"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "token ids as keys"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "token ids between 0 and"),
    ({"stream": "yes"}, "stream", "stream"),
    ({"priority": 1.5}, "priority", "an integer"),
    ({"deadline_s": -1}, "deadline_s", "above 0"),
    ({"prompt": ""}, "prompt", "at least one token"),
    ({"prompt": None}, "prompt", "a text, token ids"),
    ({"prompt": []}, "prompt", "at least one prompt"),
    ({"prompt": [[]]}, "prompt", "at least one token"),
    ({"prompt": [["a"]]}, "prompt_token_ids", "integers"),
    ({"prompt": {"a": 1}}, "prompt", "unknown key"),
    ({"prompt": [1, 99999]}, "prompt_ids", "token ids between 0 and"),
    ({"prompt": [1] * 2000}, "prompt_ids", "2000 tokens: must be at most 1023 tokens"),
    ({"suffix": "x"}, "suffix", "not supported"),
    ({"best_of": 3}, "best_of", "not supported"),
]


@pytest.mark.parametrize("body, param, sentence", REFUSED, ids=[str(body)[:40] for body, _, _ in REFUSED])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_names_its_field(client, body, param, sentence, stream):
    response = client.post("/v1/completions", json={"prompt": "12+35=", "stream": stream, **body})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == param and sentence in error["message"]
    assert error["type"] == "invalid_request_error" and error["code"] == "invalid_request"


CANNOT = ("functions", "audio", "chat_template", "web_search_options")


@pytest.mark.parametrize("field", CANNOT)
def test_what_a_chat_cannot_do_is_refused_by_name(client, field):
    value = [{"name": "f"}] if field == "functions" else {"a": 1}
    error = chat(client, **{field: value}).json()["error"]
    assert error["param"] == field and error["message"].startswith(f"{field} is not supported")
    assert chat(client, max_tokens=1, **{field: None}).status_code == 200


def test_the_built_in_model_calls_no_tools(client):
    error = chat(client, tools=[{"type": "function", "function": {"name": "f"}}]).json()["error"]
    assert error["param"] == "tools" and "chat template leaves them out" in error["message"]
    assert chat(client, tools=[], tool_choice="auto", parallel_tool_calls=True, max_tokens=1).status_code == 200


def test_unknown_fields_are_ignored_with_a_warning(client):
    response = client.post("/v1/completions", json={"prompt": "12+35=", **GREEDY, "temprature": 2, "user": "me"})
    assert response.json()["choices"][0]["text"] == "47"
    assert response.headers["x-runtime-warning"] == "unknown fields were ignored: 'temprature'"
    for name in ("a\r\nset-cookie: b", " ", "", "\u00e9\x00", "x" * 5000):
        nasty = client.post("/v1/completions", json={"prompt": "1+1=", "max_tokens": 1, name: 1})
        assert nasty.status_code in (200, 400) and "set-cookie" not in nasty.headers


def test_models(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "builtin" and model["object"] == "model" and model["max_model_len"] == 1024
    assert client.get("/v1/models/builtin").json() == model
    for response in (client.get("/v1/models/gpt-4"), chat(client, model="gpt-4")):
        assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
    assert chat(client, model="builtin", max_tokens=1).status_code == 200


def test_tokens_and_text(client, llm):
    ids = llm.tokenizer.encode("12+35=")
    found = client.post("/tokenize", json={"prompt": "12+35=", "return_token_strs": True}).json()
    assert found["tokens"] == ids and found["count"] == len(ids) and found["max_model_len"] == 1024
    assert found["token_strs"][1:] == list("12+35=")
    without = client.post("/tokenize", json={"prompt": "12+35=", "add_special_tokens": False}).json()
    assert without["tokens"] == ids[1:]
    messages = [{"role": "user", "content": "12+35="}]
    expected = llm.encode_chat(messages)[1]
    assert client.post("/tokenize", json={"messages": messages}).json()["tokens"] == expected
    assert client.post("/detokenize", json={"tokens": ids[1:]}).json() == {"prompt": "12+35="}
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    for body in ({"tokens": [99999]}, {"tokens": ["a"]}, {"tokens": [-1]}, {}):
        assert client.post("/detokenize", json=body).status_code == 400
    info = client.get("/tokenizer_info").json()
    assert info["chat_template"] == llm.tokenizer.chat_template.source and info["eos_token"] == "<eos>"


def test_tokens_in_a_tokenizers_config_are_texts(tmp_path):
    added = {"__type": "AddedToken", "content": "<eos>", "lstrip": False, "special": True}
    config = {"eos_token": added, "added_tokens_decoder": {"1": added}, "additional_special_tokens": [added]}
    with ScriptedServer(make_tokenizer(tmp_path, "{{ messages }}", **config)) as server:
        info = httpx.get(f"{server.url}/tokenizer_info").json()
    assert info["eos_token"] == "<eos>" and info["chat_template"] == "{{ messages }}"
    assert info["added_tokens_decoder"] == {"1": "<eos>"} and info["additional_special_tokens"] == ["<eos>"]


def test_operation(client, server):
    import runtime

    assert client.get("/version").json() == {"version": runtime.__version__}
    for path in ("/health", "/health/live", "/ready"):
        assert client.get(path).json() == {"status": "ok"}
    complete(client, prompt="12+35=")
    stats = client.get("/stats").json()
    assert stats["num_running"] == 0 and stats["num_free_blocks"] == stats["num_blocks"] and stats["trouble"] is None
    text = client.get("/metrics").text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples["runtime:num_requests_running"]) == 0
    assert float(samples["runtime:generation_tokens_total"]) == stats["num_output_tokens"] > 0
    assert float(samples["runtime:time_to_first_token_seconds_count"]) > 0
    assert float(samples['runtime:requests_total{outcome="finished"}']) > 0


def test_stats_as_events(client):
    with client.stream("GET", "/stats", headers={"accept": "text/event-stream"}) as response:
        lines = response.iter_lines()
        found = [json.loads(line.removeprefix("data: ")) for line in (next(lines), next(lines), next(lines)) if line]
    assert len(found) == 2 and all("num_running" in one for one in found)


def test_the_log_has_one_line_a_request_with_its_id(client, server, wait_for):
    response = client.get("/version", headers={"x-request-id": "my-id.7"})
    assert response.headers["x-request-id"] == "my-id.7"
    other = client.get("/version", headers={"x-request-id": "bad id"})
    assert other.headers["x-request-id"] != "bad id"
    complete(client, prompt="12+35=")
    secret = client.post("/v1/completions", json={"prompt": "tell nobody", "temperature": 7}, params={"q": "hidden"})
    assert secret.status_code == 400
    client.get("/version", headers={"x-request-id": "after"})
    wait_for(lambda: any("request_id=after " in line for line in server.lines))
    assert any("request_id=my-id.7 method=GET path=/version status=200" in line for line in server.lines)
    assert any("prompt_tokens=7 output_tokens=3" in line for line in server.lines)
    assert not any("nobody" in line or "hidden" in line for line in server.lines)


def test_a_disconnect_aborts_the_request(client, server, wait_for):
    body = {"prompt": "12+35=", "max_tokens": 1000, "ignore_eos": True}
    for stream in (True, False):
        before = client.get("/stats").json()["num_finished"]
        with httpx.Client(base_url=server.url) as other:
            if stream:
                with other.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
                    next(response.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    other.post("/v1/completions", json=body, timeout=0.2)

        def is_over(before=before):
            stats = client.get("/stats").json()
            return stats["num_running"] == stats["num_requests"] == 0 and stats["num_finished"] > before

        wait_for(is_over)
    assert client.get("/stats").json()["num_free_blocks"] == client.get("/stats").json()["num_blocks"]
