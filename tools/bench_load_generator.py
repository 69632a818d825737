"""What the load generator itself costs: `runtime bench serve` against a server that only writes prepared bytes.

    python tools/bench_load_generator.py [--streams N] [--rate TOKENS] [--out N] [--append FILE]

So many clients, each of whose streams brings a chunk of one token that many times a second. The row is that of the
command; its `client_cpu_pct` is the generator's share of a core, `late_...` how late it sends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys

from runtime.bench.load.http_client import allow_many_connections

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_MODELS = json.dumps({"data": [{"id": "prepared", "owned_by": "prepared"}]}).encode()


def _event(data: bytes) -> bytes:
    line = b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(line), line)


def _chunk(count: int, choices: list[dict[str, object]]) -> bytes:
    usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
    head = {"id": f"cmpl-{'0' * 24}", "object": "text_completion", "created": 1, "model": "prepared"}
    return _event(json.dumps({**head, "choices": choices, "usage": usage}).encode())


class Prepared(asyncio.Protocol):
    """Reads requests whole in one packet or two, and streams `chunks` at even times."""

    chunks: list[bytes]
    interval_s: float

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        if not head or len(body) < length:
            return
        self._received = b""
        if head.startswith(b"GET"):
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(_MODELS), _MODELS))
        else:
            self._transport.write(_HEAD)
            self._write(0, asyncio.get_running_loop().time())

    def _write(self, index: int, at: float) -> None:
        self._transport.write(self.chunks[index])
        if index + 1 < len(self.chunks):
            following = at + self.interval_s
            asyncio.get_running_loop().call_at(following, self._write, index + 1, following)


async def _serve(rate: float, output_len: int) -> None:
    text = [{"index": 0, "text": " word", "logprobs": None, "finish_reason": None}]
    end = _chunk(output_len, []) + _event(b"[DONE]") + b"0\r\n\r\n"
    Prepared.chunks = [_chunk(count, text) for count in range(1, output_len + 1)]
    Prepared.chunks[-1] += end
    Prepared.interval_s = 1 / rate
    server = await asyncio.get_running_loop().create_server(Prepared, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until the other process ends


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=512)
    parser.add_argument("--rate", type=float, default=25.0, help="tokens a second of each stream")
    parser.add_argument("--out", type=int, default=128, help="tokens of each stream")
    parser.add_argument("--append", metavar="FILE")
    parser.add_argument("--server", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    allow_many_connections()
    if args.server:
        asyncio.run(_serve(args.rate, args.out))
        return 0
    command = [sys.executable, __file__, "--server", "--rate", str(args.rate), "--out", str(args.out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stdin is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        load = ["--concurrency", str(args.streams), "--num-requests", str(3 * args.streams), "--out", str(args.out)]
        append = ["--append", args.append] if args.append else []
        bench = [sys.executable, "-m", "runtime", "bench", "serve", "--base-url", url, "--json", *load, *append]
        status = subprocess.run(bench).returncode
        server.stdin.close()
    return status


if __name__ == "__main__":
    sys.exit(main())
