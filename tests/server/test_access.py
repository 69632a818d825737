"""Who may ask a server: keys, origins, the Host header, and where it may listen."""

import base64

import httpx
import pytest

from runtime.errors import ConfigError
from runtime.server.config import ServerConfig

KEY = "correct-horse-battery"
GUARDED = ("--api-key", KEY, "--api-key", "another-good-key", "--allowed-origin", "https://chat.example")


def test_an_api_key_guards_all_but_health(start_server):
    guarded = start_server(*GUARDED)
    with httpx.Client(base_url=guarded.url) as client:
        for path in ("/health", "/health/live", "/ready", "/metrics"):
            assert client.get(path).status_code == 200
        for path in (
            "/",
            "/v1/models",
            "/stats",
            "/version",
            "/nowhere",
            "/health/",
            "/%68ealth",
            "//health",
            "/health/x",
        ):
            response = client.get(path)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key"), path
            assert response.headers["www-authenticate"] == "Bearer"
        for given in (KEY, "another-good-key"):
            assert client.get("/version", headers={"authorization": f"Bearer {given}"}).status_code == 200
            basic = base64.b64encode(f"me:{given}".encode()).decode()
            assert client.get("/version", headers={"authorization": f"Basic {basic}"}).status_code == 200
        for given in (KEY[:-1], KEY + "x", KEY.upper(), "x", f"{KEY} x"):
            for scheme in ("Bearer", "Basic", "Token"):
                response = client.get("/version", headers={"authorization": f"{scheme} {given}"})
                assert response.status_code == 401
        page = client.get("/", headers={"accept": "text/html"})
        assert page.status_code == 401 and page.headers["www-authenticate"].startswith("Basic")
        assert not any(KEY in line for line in guarded.lines)
        _origins(client, {"authorization": f"Bearer {KEY}"})


def _origins(client, key):
    same = str(client.base_url)
    for origin, status in (
        (None, 200),
        (same, 200),
        ("https://chat.example", 200),
        ("https://evil.example", 403),
        ("null", 403),
    ):
        headers = key if origin is None else {**key, "origin": origin}
        response = client.get("/version", headers=headers)
        assert response.status_code == status, origin
        shared = response.headers.get("access-control-allow-origin")
        assert shared == ("https://chat.example" if origin == "https://chat.example" else None)


def test_the_host_header_must_be_this_machines(client, server):
    for host, status in (("localhost", 200), (f"127.0.0.1:{server.port}", 200), ("[::1]:80", 200), ("LOCALHOST", 200)):
        assert client.get("/version", headers={"host": host}).status_code == status
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", ""):
        response = client.get("/version", headers={"host": host})
        assert response.status_code == 403 and response.json()["error"]["code"] == "host_not_allowed"


def test_others_may_listen_only_with_a_key():
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(ConfigError, match="--api-key"):
            ServerConfig(host=host)
        assert ServerConfig(host=host, api_key=[KEY]).host_names is None
        assert ServerConfig(host=host, insecure_no_auth=True)
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9"):
        assert ServerConfig(host=host).host_names is not None
    with pytest.raises(ConfigError, match="at least 8"):
        ServerConfig(api_key=["short"])
