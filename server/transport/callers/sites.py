"""Which names the service answers to, and which pages in browsers may call it.

A page anywhere can make its visitor's browser send requests to a loopback address: as a form, or, once the page's own
name leads there (DNS rebinding), as itself. What browsers cannot forge tells them apart: the Host they looked up, the
Origin of the page, and Sec-Fetch-Site.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass

from server.config import Settings
from server.errors import Reason, ServiceError, invalid

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%25[\w.-]+)?\]|[\w.-]+)(?::(\d{1,5}))?", re.ASCII)
_ELSEWHERE = ("cross-site", "same-site")


@dataclass(frozen=True)
class Sites:
    """`hosts` are names beside addresses, one label and `localhost`; none: every name, where a key is asked for."""

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    any_host: bool = False

    def check(self, header: Callable[[str], str | None]) -> None:
        """Refuse a request for another name, or from a page that is not named. Raises FOREIGN_SITE."""
        host, origin = header("host"), header("origin")
        if host is not None and not self._answers_to(host):
            rule = "must be an address, localhost, or one of allowed_hosts"
            raise invalid("Host", rule, host or "nothing", Reason.FOREIGN_SITE)
        self.check_origin(header)
        if origin is None and header("sec-fetch-site") in _ELSEWHERE:
            raise _page(str(header("sec-fetch-site")))

    def check_origin(self, header: Callable[[str], str | None]) -> None:
        """Refuse a page that is not named, whatever it calls."""
        origin = header("origin")
        if origin is not None and origin.lower() not in self.origins:
            raise _page(origin)

    def _answers_to(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None or len(host) > 300:
            return False
        name = found[1].lower().rstrip(".")
        if self.any_host or name in self.hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        return _is_address(name) or "." not in name  # no public name has one label: nobody elsewhere can hold it


def _page(shown: str) -> ServiceError:
    rule = "must be absent or one of allowed_origins: pages in browsers are not served"
    return invalid("Origin", rule, shown, Reason.FOREIGN_SITE)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]").partition("%25")[0])
    except ValueError:
        return False
    return True


def sites_of(settings: Settings) -> Sites:
    """Every name where a key or a certificate is asked for beyond this machine; elsewhere the machine's own."""
    named = frozenset(name.lower() for name in settings.allowed_hosts)
    own = {settings.host.lower(), socket.gethostname().lower()}
    origins = frozenset(origin.lower() for origin in settings.allowed_origins)
    any_host = not named and settings.is_guarded and not settings.is_loopback
    return Sites(named | own, origins, any_host)
