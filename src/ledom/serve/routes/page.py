"""The page at `/`, the API's page at `/docs`, and the reports of one folder.

Only files found by listing the folder are served, never a path built from the request.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from fastapi import APIRouter
from fastapi.responses import Response

from ledom.core.reading import JsonObject
from ledom.serve.refusals import Refusal
from ledom.serve.routes.shared import ServiceOf

__all__ = ["router"]

router = APIRouter(tags=["page"])

_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A report contains its own style sheet and no script.
_REPORT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
)
_DEEPEST = 3  # most levels of folders below the given one
_PAGE = Path(__file__).parents[1] / "page"


def _file(content: bytes, suffix: str, policy: str) -> Response:
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
    return Response(content, media_type=_TYPES[suffix], headers=headers)


@router.get("/", include_in_schema=False)
async def index() -> Response:
    """The page."""
    return await asset("index.html")


@router.get("/docs", include_in_schema=False)
async def api() -> Response:
    """The page of the API: every route, with an example that runs."""
    return await asset("api.html")


@router.get("/page/{name}", include_in_schema=False)
async def asset(name: str) -> Response:
    """A file that the page loads."""
    if name not in os.listdir(_PAGE):
        raise Refusal(404, f"the page has no file {name!r:.60}")
    return _file((_PAGE / name).read_bytes(), Path(name).suffix, _PAGE_POLICY)


@router.get("/ledom/reports")
async def reports(service: ServiceOf) -> JsonObject:
    """The reports in the folder that the server was started with, the latest first.

    Each is at `/ledom/reports/NAME`.
    """
    found = _reports(service.settings.reports)
    latest = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return {"reports": [{"name": name, "written": written} for name, written in latest]}


@router.get("/ledom/reports/{name:path}", include_in_schema=False)
async def report(name: str, service: ServiceOf) -> Response:
    """A report, under a policy that forbids scripts."""
    folder = service.settings.reports
    if folder is None or name not in _reports(folder):
        raise Refusal(404, f"no report {name!r:.60}; GET /ledom/reports lists them")
    try:
        return _file((folder / name).read_bytes(), ".html", _REPORT_POLICY)
    except OSError as error:
        reason = error.strerror or error
        raise Refusal(404, f"the report {name!r:.60} cannot be read: {reason}") from None


def _reports(folder: Path | None) -> dict[str, float]:
    """When the HTML files below a folder were written, by relative path. Hidden files, links, and
    names that are not UTF-8 are left out."""
    if folder is None:
        return {}
    found: dict[str, float] = {}
    for place, folders, names in os.walk(folder):
        here = Path(place).relative_to(folder)
        deep = len(here.parts) >= _DEEPEST
        folders[:] = [] if deep else [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.endswith(".html") and not name.startswith("."):
                path = (here / name).as_posix()
                with suppress(OSError, UnicodeEncodeError):  # a run may delete the file meanwhile
                    path.encode()
                    status = (folder / path).lstat()
                    if S_ISREG(status.st_mode):
                        found[path] = status.st_mtime
    return found
