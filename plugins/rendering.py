"""How the pages are made: templates in the house style, headers that let nothing run, errors in words."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import quote, urlsplit

from airflow.api_fastapi.app import get_auth_manager
from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from starlette.exceptions import HTTPException as StarletteHTTPException

from plugins.evidence_view import facts, link_label, reason_groups
from plugins.links import PAGES
from plugins.problems import headers_of, status_of
from tasks.core.errors import PenstockError
from tasks.core.report_style import page, percent

log = logging.getLogger(__name__)

PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; "
    "base-uri 'none'; form-action 'none'"
)
REPORT_POLICY = f"{PAGE_POLICY}; font-src data:; sandbox allow-popups allow-popups-to-escape-sandbox"

_templates = Environment(
    loader=PackageLoader("plugins", "templates"),
    autoescape=select_autoescape(default=True, default_for_string=True),
    trim_blocks=True,
    lstrip_blocks=True,
)
_BADGES = {
    "pass": "pass",
    "ok": "pass",
    "success": "pass",
    "none": "pass",
    "healthy": "pass",
    "noise": "pass",
    "fail": "fail",
    "error": "fail",
    "data fault": "fail",
    "performance damage": "fail",
    "warn": "warn",
    "inconclusive": "warn",
    "hold": "warn",
    "alert": "warn",
    "drift, no damage seen": "warn",
    "cannot judge": "warn",
    "rejected": "warn",
    "skipped": "skip",
}


def said(item: dict[str, Any]) -> str:
    """The word for a record's badge: its outcome, or whether a verification found everything in order."""
    outcome = str(item.get("outcome") or "")
    summary = item.get("summary")
    if not outcome and isinstance(summary, dict) and isinstance(summary.get("ok"), bool):
        return "pass" if summary["ok"] else "fail"
    return outcome


def badge(outcome: Any) -> str:
    """The badge's colour class for an outcome's word; an unknown word is neutral."""
    return _BADGES.get(str(outcome or "").lower(), "info")


def links_in(raw: Any, *, framed: bool) -> list[dict[str, Any]]:
    """Links of a record, as `{label: url}` or `[{"title", "url"}]`, in one form; only http(s) and own paths stay.

    Inside Airflow's tab the browser opens no new window and other services refuse to be framed: there a link to
    another service is shown as an address to copy.
    """
    pairs = (
        list(raw.items())
        if isinstance(raw, dict)
        else [
            (item.get("title") or item.get("label"), item.get("url"))
            for item in raw or ()
            if isinstance(item, dict)
        ]
    )
    found = []
    for label, url in pairs:
        parts = urlsplit(str(url or ""))
        if not (parts.scheme in ("http", "https") or str(url).startswith(f"{PAGES}/")):
            continue
        own = parts.path.startswith(f"{PAGES}/")
        href = parts.path if own else str(url)
        found.append(
            {
                "label": link_label(str(label or ""), str(url)),
                "href": href,
                "own": own,
                "open": own or not framed,
            }
        )
    return found


_templates.filters |= {
    "percent": percent,
    "badge": badge,
    "said": said,
    "facts": facts,
    "reason_groups": reason_groups,
}


def html_page(
    request: Request,
    title: str,
    template: str,
    *,
    subtitle: str,
    status: int = 200,
    policy: str = PAGE_POLICY,
    **values: Any,
) -> Response:
    """A page made from a template, to which `values`, `framed`, `links_in` and `pages` are known."""
    framed = is_framed(request)
    body = _templates.get_template(template).render(
        **values, framed=framed, links_in=lambda raw: links_in(raw, framed=framed), pages=PAGES
    )
    return HTMLResponse(
        page(title, Markup(body), subtitle),
        status_code=status,
        headers={**page_headers(policy), **headers_of(status)},
    )


def is_framed(request: Request) -> bool:
    """Whether the page is for a tab inside Airflow's own page."""
    return request.headers.get("sec-fetch-dest") == "iframe"


def page_headers(policy: str) -> dict[str, str]:
    """Headers of every page."""
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "private, no-store",
    }


def refusal(request: Request, error: Exception) -> Response:
    """401, 403, 404 and 429 as pages; a browser that is not logged in is sent to the login page and back."""
    assert isinstance(error, StarletteHTTPException)  # of which FastAPI's own is one
    wants_page = "text/html" in request.headers.get("accept", "")
    if error.status_code == 401 and wants_page and not is_framed(request):
        login = get_auth_manager().get_url_login()
        target = quote(str(request.url.replace(fragment=None)), safe="")
        return RedirectResponse(f"{login}{'&' if '?' in login else '?'}next={target}", status_code=303)
    titles = {401: "Log in first", 403: "Not for this user", 404: "Not found", 429: "Too many requests"}
    answer = _message(request, error.status_code, titles.get(error.status_code, "Refused"), str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


_TITLES = {
    400: "This cannot be asked",
    404: "Not found",
    409: "Something else is live",
    410: "Expired",
    500: "Stored data cannot be used",
    503: "Not available now",
}


def failure(request: Request, error: Exception) -> Response:
    """An error of ours as a page, with its status and what to do."""
    assert isinstance(error, PenstockError)
    log.warning("Page failed: %s", error)
    status = status_of(error)
    said = f"{error.which}: {error.what}" if error.which else error.what
    return _message(request, status, _TITLES[status], said, error.fix)


def _message(request: Request, status: int, title: str, *lines: str) -> Response:
    back = f"{PAGES}/audit/" if "/audit/" in request.url.path else ""
    body = _templates.get_template("message.html").render(lines=[line for line in lines if line], back=back)
    return HTMLResponse(
        page(title, Markup(body)),
        status_code=status,
        headers={**page_headers(PAGE_POLICY), **headers_of(status)},
    )
