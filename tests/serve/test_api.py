"""The API description and its page: every example runs, and nothing is loaded elsewhere."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from ledom.serve.server import Server
from waiting import SECONDS


def example(schema: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    """The body shown on the page: the first example of each field that has examples."""
    fields = description["components"]["schemas"][schema["$ref"].split("/")[-1]]["properties"]
    return {key: field["examples"][0] for key, field in fields.items() if "examples" in field}


@pytest.mark.slow
def test_every_example_runs(server: Server) -> None:
    description = httpx.get(f"{server.url}/openapi.json", timeout=SECONDS).json()
    ran = set()
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            if "{" in path:
                continue
            body = operation.get("requestBody")
            sent = None
            if body is not None:
                sent = example(body["content"]["application/json"]["schema"], description)
                assert sent, path
            answer = httpx.request(method.upper(), server.url + path, json=sent, timeout=SECONDS)
            assert answer.status_code == 200, (path, sent, answer.text)
            assert operation["description"]
            ran.add(path)
    assert {"/score", "/rerank", "/reward", "/v1/chat/completions", "/ledom/generate"} <= ran


@pytest.mark.slow
def test_each_kind_of_body_has_its_own_name(server: Server) -> None:
    """Generators of clients name classes by titles, and leave out routes if two are equal."""
    description = httpx.get(f"{server.url}/openapi.json", timeout=SECONDS).json()
    schemas = description["components"]["schemas"]
    assert {name: schema["title"] for name, schema in schemas.items()} == {n: n for n in schemas}


@pytest.mark.slow
def test_the_page_loads_nothing_from_other_servers(server: Server) -> None:
    page = httpx.get(f"{server.url}/docs", timeout=SECONDS)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    texts = [page.text]
    for name in ("api.css", "api.js"):
        assert f'"page/{name}"' in page.text
        file = httpx.get(f"{server.url}/page/{name}", timeout=SECONDS)
        assert file.status_code == 200
        texts.append(file.text)
    assert not any(re.search(r"https?:", text) for text in texts)
