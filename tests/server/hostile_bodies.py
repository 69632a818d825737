"""How long bodies that were made to hurt hold up a server's event loop.

    python tests/server/hostile_bodies.py [--rounds N]

Prints one JSON object: for each kind of body, with one and with six at a time, the longest time in milliseconds that
the loop did nothing else (`watched_server.py`). Bodies have up to the 8 MiB that a server takes.
"""

import argparse
import concurrent.futures
import http.client
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from soak import Server

MIB = 1 << 20
COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"


def in_prompt(text):
    return b'{"prompt": ' + text + b"}"


def in_chat(messages):
    return b'{"messages": [' + messages + b"]}"


def tools(choice=b""):
    tool = b'{"type": "function", "function": {"name": "f%d", "parameters": {"enum": ["%s"]}}}'
    listed = b",".join(tool % (i, b"a" * 60_000) for i in range(128))
    return b'{"messages": [{"role": "user", "content": "a"}]%s, "tools": [%s]}' % (choice, listed)


def bodies():
    """name: (path, body)."""
    message = b'{"role": "user", "content": "a"},'
    keys = b",".join(b'"k%d": 1' % i for i in range(60_000))
    return {
        "brackets": (COMPLETION, b"[" * (8 * MIB - 1)),
        "nested": (COMPLETION, in_prompt(b"[" + b",".join([b"[" * 60 + b"]" * 60] * 1000) + b"]")),
        "a long text": (COMPLETION, in_prompt(b'"' + b"a " * (4 * MIB - 100) + b'"')),
        "a long word": (COMPLETION, in_prompt(b'"' + b"a" * (8 * MIB - 100) + b'"')),
        "escapes": (COMPLETION, in_prompt(b'"' + b"\\u00e9" * (8 * MIB // 6 - 100) + b'"')),
        "backslashes": (COMPLETION, in_prompt(b'"' + b"\\\\" * (4 * MIB - 100) + b'"')),
        "quotes": (COMPLETION, in_prompt(b'"' + b'\\"' * (4 * MIB - 100) + b'"')),
        "many texts": (COMPLETION, in_prompt(b"[" + b'"",' * 65_000 + b'""]')),
        "many ids": (COMPLETION, in_prompt(b"[" + b"1," * 262_000 + b"1]")),
        "long numbers": (COMPLETION, in_prompt(b"[" + b"1" * (8 * MIB - 100) + b"]")),
        "many values": (COMPLETION, in_prompt(b"[" + b"1," * (4 * MIB - 100) + b"1]")),
        "many fields": (COMPLETION, b'{"prompt": "a", ' + keys + b"}"),
        "many biases": (COMPLETION, b'{"prompt": "a", "logit_bias": {' + keys + b"}}"),
        "many allowed ids": (COMPLETION, b'{"prompt": "a", "allowed_token_ids": [' + b"5," * 262_000 + b"5]}"),
        "many stops": (COMPLETION, b'{"prompt": "a", "stop": [' + b'"a",' * 65_000 + b'"b"]}'),
        "many messages": (CHAT, in_chat(message * 20_000 + message[:-1])),
        "a long message": (CHAT, in_chat(b'{"role": "user", "content": "' + b"a " * (4 * MIB - 100) + b'"}')),
        "many parts": (
            CHAT,
            in_chat(b'{"role": "user", "content": [' + b'{"type": "text", "text": "a"},' * 20_000 + b"{}]}"),
        ),
        "large tools": (CHAT, tools()),
        "large tools, one of which must be called": (CHAT, tools(b', "tool_choice": "required"')),
        "a large schema": (
            CHAT,
            in_chat(message[:-1])[:-1]
            + b', "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ['
            + b'"a",' * 60_000
            + b'"b"]}}}}',
        ),
        "not UTF-8": (COMPLETION, in_prompt(b'"' + b"\xff" * (8 * MIB - 100) + b'"')),
        "tokenize": ("/tokenize", in_prompt(b'"' + b"a" * (512 << 10) + b'"')),
        "detokenize": ("/detokenize", b'{"tokens": [' + b"5," * 260_000 + b"5]}"),
    }


def send(server, path, body):
    """The status."""
    connection = http.client.HTTPConnection(*server.address, timeout=60)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except OSError:
        return 0  # it was closed before all was sent
    finally:
        connection.close()


def blocked_ms(server, path, body, at_once, rounds):
    server.forget_blocked()
    with concurrent.futures.ThreadPoolExecutor(at_once) as threads:
        statuses = list(threads.map(lambda _: send(server, path, body), range(at_once * rounds)))
    server.ask()
    return server.blocked_ms, sorted(set(statuses))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    server, found = Server(), {}
    try:
        for name, (path, body) in bodies().items():
            one, statuses = blocked_ms(server, path, body, 1, args.rounds)
            six, _ = blocked_ms(server, path, body, 6, args.rounds)
            found[name] = {"one": one, "six": six, "statuses": statuses}
    finally:
        server.process.kill()
    print(json.dumps({"longest": max(max(row["one"], row["six"]) for row in found.values()), **found}))


if __name__ == "__main__":
    main()
