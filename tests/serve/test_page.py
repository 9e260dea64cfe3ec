"""The page without a browser: what it may load, its parts, and what the server shows."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import ledom
from ledom.lm.backends.fake import FakeLanguageModel
from ledom.serve.app import make_app
from ledom.serve.judge import Judge
from ledom.serve.service import Service
from ledom.serve.settings import Settings

PAGE = Path(ledom.__file__).parent / "serve" / "page"
CODE = sorted(file for file in PAGE.iterdir() if file.suffix in (".html", ".css", ".js", ".svg"))
SCRIPTS = [file for file in CODE if file.suffix == ".js"]
Pair = tuple[FakeLanguageModel, FakeLanguageModel]


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """A folder with two reports, and next to it a file that no request may reach."""
    folder = tmp_path / "out"
    for name in ("demo/report.html", "compare/compare.html", "a/b/c/d/deep.html", ".git/x.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"<p>{name}</p>")
    (folder / "demo" / "scores.jsonl").write_text("{}")
    (tmp_path / "secret.html").write_text("not for others")
    (folder / "link.html").symlink_to(tmp_path / "secret.html")
    (folder / "linked").symlink_to(tmp_path)
    return folder


def client_of(pair: Pair, **settings: object) -> TestClient:
    """A client of a server with these settings."""
    app = make_app(Service(Judge(*pair), Settings.model_validate(settings)))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def test_the_page_may_load_only_from_its_server(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    for kind in ("script-src", "style-src", "connect-src", "img-src"):
        assert policy[kind] == "'self'"
    for kind in ("base-uri", "form-action", "frame-ancestors"):
        assert policy[kind] == "'none'"
    for file in CODE:
        answer = client.get(f"/page/{file.name}")
        assert answer.content == file.read_bytes()
        assert "content-security-policy" in answer.headers


def test_the_page_is_small_and_has_no_outside_address() -> None:
    assert sum(len(file.read_text().splitlines()) for file in CODE) <= 1200
    for file in CODE:
        text = file.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "//" not in re.sub(r"^\s*//.*|[;{,] // .*$", "", text, flags=re.MULTILINE), file.name
        assert "innerHTML" not in text
        assert "insertAdjacentHTML" not in text


def test_addresses_are_relative() -> None:
    """A reverse proxy may put a prefix before the page's path."""
    for file in CODE:
        absolute = re.search(r'(href|src)="/|href: [`"]/|fetch\((?!address)', file.read_text())
        assert not absolute, f"{file.name}: {absolute}"


def test_nothing_is_inline() -> None:
    page = (PAGE / "index.html").read_text()
    assert "<style" not in page
    assert not re.search(r"\s(style|on[a-z]+)=", page)
    assert re.findall(r"<script(.*?)>(.*?)</script>", page) == [
        (' type="module" src="page/app.js"', "")
    ]


def test_elements_used_by_scripts_exist() -> None:
    page = (PAGE / "index.html").read_text()
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    code = "\n".join(file.read_text() for file in SCRIPTS)
    wanted = set(re.findall(r'\$\("([^"]+)"\)', code))
    assert len(wanted) > 20
    api = (PAGE / "api.html").read_text()
    of_api = set(re.findall(r'\$\("([^"]+)"\)', (PAGE / "api.js").read_text()))
    assert of_api <= set(re.findall(r'\sid="([^"]+)"', api))
    assert wanted - of_api <= set(ids)
    for attribute in ("aria-labelledby", "for"):
        assert set(re.findall(rf'{attribute}="([^"]+)"', page)) <= set(ids)
    parts = set(re.findall(r'data-part="([^"]+)"', page))
    assert set(re.findall(r"\bpart\.(\w+)", code)) <= parts
    for names, module in re.findall(r'import \{ (.+?) \} from "\./(\w+\.js)"', code):
        source = (PAGE / module).read_text()
        for name in names.split(", "):
            kind = "export (const|class|(async )?function)"
            assert re.search(rf"{kind} {re.escape(name)}(?!\w)", source)


def test_every_control_has_a_name() -> None:
    page = (PAGE / "index.html").read_text()
    for label in re.findall(r"<label.*?</label>", page, re.DOTALL):
        assert re.sub(r"<.*?>|\s", "", label), label
        page = page.replace(label, "")
    assert not re.search(r"<(input|select|textarea)\b", page)  # each is inside its label
    for text in re.findall(r"<button[^>]*>(.*?)</button>", page):
        assert text.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["/page/../app.py", "/page/%2e%2e%2fapp.py", "/page/__init__.py", "/page/", "/page/x/y"]
)
def test_no_other_file_is_served(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == 404


def test_reports_are_listed_and_served_without_scripts(pair: Pair, reports: Path) -> None:
    with client_of(pair, reports=reports) as web:
        listed = web.get("/ledom/reports").json()["reports"]
        assert {report["name"] for report in listed} == {"demo/report.html", "compare/compare.html"}
        answer = web.get("/ledom/reports/demo/report.html")
        assert answer.text == "<p>demo/report.html</p>"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("sandbox; default-src 'none'")
        assert "script-src" not in policy


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "../secret.html",
        "%2e%2e/secret.html",
        "demo/../../secret.html",
        "demo/%2e%2e/%2e%2e/secret.html",
        "/etc/passwd",
        "link.html",
        "linked/secret.html",
        ".git/x.html",
        "a/b/c/d/deep.html",
        "demo/scores.jsonl",
        "demo",
    ],
)
def test_nothing_else_in_or_next_to_the_folder_is_served(
    pair: Pair, reports: Path, name: str
) -> None:
    with client_of(pair, reports=reports) as web:
        answer = web.get(f"/ledom/reports/{name}")
        assert answer.status_code == 404
        assert "not for others" not in answer.text


def test_a_report_deleted_meanwhile_causes_no_error(
    pair: Pair, reports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = os.walk

    def before_a_run_deletes_one(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for place, folders, names in walk(folder):
            yield place, folders, [*names, "gone.html"] if place == str(folder) else names

    with client_of(pair, reports=reports) as web:
        with monkeypatch.context() as patch:
            patch.setattr("os.walk", before_a_run_deletes_one)
            listed = web.get("/ledom/reports").json()["reports"]
        monkeypatch.setattr("ledom.serve.routes.page._reports", lambda folder: {"gone.html": 0.0})
        answer = web.get("/ledom/reports/gone.html")
    assert {one["name"] for one in listed} == {"compare/compare.html", "demo/report.html"}
    assert answer.status_code == 404
    assert "'gone.html' cannot be read: No such file" in answer.json()["error"]["message"]


def test_without_a_folder_there_are_no_reports(client: TestClient) -> None:
    assert client.get("/ledom/reports").json() == {"reports": []}
    assert client.get("/ledom/reports/report.html").status_code == 404


def test_a_missing_folder_of_reports_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ledom.LedomError, match=r"none: is not a folder"):
        Settings(reports=tmp_path / "none").check()


def test_a_browser_sends_the_token_as_a_password(pair: Pair) -> None:
    with client_of(pair, token="secret") as web:
        refused = web.get("/")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic realm=")
        for password, status in (("secret", 200), ("wrong", 401)):
            value = base64.b64encode(f"me:{password}".encode()).decode()
            assert web.get("/", headers={"Authorization": f"Basic {value}"}).status_code == status
        for header in ("Basic !", "Basic", "Basic c2VjcmV0", "secret", "Bearer"):
            assert web.get("/", headers={"Authorization": header}).status_code == 401
        assert web.get("/", headers={"Authorization": "Bearer secret"}).status_code == 200


@pytest.mark.slow
@pytest.mark.usefixtures("embedded_once")
def test_the_recorded_examples_come_from_the_embedded_pair() -> None:
    """The first of them is checked with the library instead of the server."""
    recorded = json.loads((PAGE / "examples.json").read_text())
    example = recorded["examples"][0]
    for name in ("forward", "reverse"):
        lm = ledom.load("tiny", name)
        assert lm.fingerprint == recorded["fingerprints"][name], "the pair changed: make examples"
        made = example["write"][name]
        ((_, (again,)),) = lm.generate([made["given"]], ledom.Sampling(temperature=0))
        assert "".join(token["text"] for token in made["tokens"]) == again.text
        target = {"forward": "y|x", "reverse": "x|y"}[name]
        features = example["judge"]["results"][0]["features"]
        pair = lm.pair_format.encode(
            lm.tokenizer, [(example["question"], example["answers"][0])], *lm.special_ids
        )[0]
        question, solution = pair.question, pair.solution
        span = {
            "y|x": (solution[0], solution[1] + 1),  # with the end token after it
            "x|y": (question[0] - 1, question[1]),  # with the end token before it
        }[target]
        (values,) = lm.logprobs([ledom.TokenSpan(pair.ids, *span)])
        assert features[name] == pytest.approx(float(values.sum()), abs=2e-3)


def test_a_report_whose_name_is_not_utf8_is_skipped(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "one.html").write_text("<p>one")
    try:
        (tmp_path / os.fsdecode(b"\xff.html")).write_text("<p>two")
    except OSError:
        pytest.skip("this file system accepts only UTF-8 names")
    with client_of(pair, reports=tmp_path) as client:
        found = client.get("/ledom/reports").json()["reports"]
    assert [report["name"] for report in found] == ["one.html"]
