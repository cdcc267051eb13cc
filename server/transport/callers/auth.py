"""API keys: kept as digests, compared in constant time, each with a role; read again while the service runs.

A key is written as `KEY` or `sha256:HEX`, and after it, between spaces, `role=robot|viewer|admin`, `name=NAME` and
`weight=NUMBER`. Keys of one name are one party: they share what they make and what they may have. The weight is of its
turns in an engine that several parties want.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from server.config import Settings, SettingsError
from server.errors import Reason, ServiceError
from server.values.caller import ROLES, Caller, Role

LEAST_KEY, SHORT_KEY = (
    8,
    16,
)  # characters: a key with fewer than the first is refused, with fewer than the other told of
LEAST_WEIGHT, MOST_WEIGHT = 0.01, 100.0
LOOK_S = 1.0  # how often the key file is looked at

_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")
_NUMBER = re.compile(r"\d{1,6}(\.\d{1,6})?")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = structlog.get_logger()


@dataclass(frozen=True)
class Key:
    """An accepted key: its sha256, and who shows it."""

    digest: bytes
    caller: Caller
    is_short: bool = False


@dataclass(frozen=True)
class Keys:
    """The accepted keys. Without any, every caller is let in."""

    keys: tuple[Key, ...] = ()

    def check(self, header: Callable[[str], str | None], address: str = "") -> Caller:
        """Whose call shows an accepted key in `authorization: Bearer KEY` or `x-api-key: KEY`, or else comes from here.

        openpi clients write the first with the scheme Api-Key.

        `header` finds a header by its lower-case name. Raises UNAUTHENTICATED, which never repeats the key.
        """
        if not self.keys:
            return Caller(name=party_of(address))
        scheme, _, token = (header("authorization") or "").partition(" ")
        shown = token.strip() if scheme.lower() in ("bearer", "api-key") else header("x-api-key") or ""
        digest = hashlib.sha256(shown.encode("utf-8", "surrogateescape")).digest()
        # All of them, whichever matches: how long it takes tells nothing.
        accepted = [key for key in self.keys if hmac.compare_digest(digest, key.digest)]
        if not shown:
            rule = "must come in 'authorization: Bearer KEY' or 'x-api-key: KEY'"
            raise ServiceError(Reason.UNAUTHENTICATED, f"an API key {rule}", field="authorization", rule=rule)
        if not accepted:
            raise ServiceError(Reason.UNAUTHENTICATED, "the API key is not accepted", field="authorization")
        return accepted[-1].caller

    @property
    def callers(self) -> frozenset[Caller]:
        return frozenset(key.caller for key in self.keys)


@dataclass
class KeyRing:
    """The keys accepted now, and the work in progress for each of their callers."""

    current: Keys
    read: Callable[[], Keys] | None = None  # reads them anew; None: they stay as they are
    revoked: Callable[[str], None] = lambda owner: None  # told of every owner that no key stands for any more
    _working: dict[Caller, set[Callable[[], None]]] = field(default_factory=dict)

    def check(self, header: Callable[[str], str | None], address: str = "") -> Caller:
        """As `Keys.check`."""
        return self.current.check(header, address)

    @property
    def parties(self) -> int | None:
        """How many parties have keys; None where there are no keys, and so any number."""
        return len({caller.name for caller in self.current.callers}) or None

    @contextmanager
    def ending(self, caller: Caller, end: Callable[[], None]) -> Iterator[None]:
        """`end` is called where the caller's key is revoked, or its role changed, while this lasts."""
        ends = self._working.setdefault(caller, set())
        ends.add(end)
        try:
            yield
        finally:
            ends.discard(end)
            if not ends:
                self._working.pop(caller, None)

    def reload(self) -> None:
        """Accept the keys there are now, and no others. Keys that cannot be read change nothing and are logged."""
        if self.read is None:
            return
        try:
            fresh = self.read()
        except SettingsError as error:
            _log.error("the keys stay as they were", why=str(error))
            return
        if fresh == self.current:
            return
        before, self.current = self.current, fresh
        gone = before.callers - fresh.callers
        _log.info("the keys were read again", keys=len(fresh.keys), revoked=len(gone))
        for caller in gone:
            for end in tuple(self._working.get(caller, ())):
                end()
        for owner in {caller.owner for caller in gone} - {caller.owner for caller in fresh.callers}:
            self.revoked(owner)

    async def watch(self, file: Path | None) -> None:
        """Reload whenever the key file has changed, for as long as this is awaited."""
        if file is None:
            return
        seen = await asyncio.to_thread(_state, file)
        self.reload()  # it may have changed since it was first read
        while True:
            await asyncio.sleep(LOOK_S)
            now = await asyncio.to_thread(_state, file)
            if now != seen:
                seen = now
                self.reload()


def party_of(address: str) -> str:
    """Who is one party where there are no keys: an IPv4 address, or the network that IPv6 gives to one site.

    `address` is as a transport writes a peer: `ipv4:1.2.3.4:5`, `ipv6:%5B::1%5D:5` or `1.2.3.4:5`.
    """
    host = address.removeprefix("ipv4:").removeprefix("ipv6:").replace("%5B", "[").replace("%5D", "]")
    host = host.rpartition(":")[0].strip("[]")
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((int(found), 64), strict=False))
    return str(found)


def load_keys(settings: Settings) -> Keys:
    """Gather the keys of settings and key file. Raises SettingsError, which never repeats one."""
    keys = [_key(key.get_secret_value(), f"api_keys[{index}]") for index, key in enumerate(settings.api_keys)]
    if settings.api_keys_file is not None:
        keys += _keys_of(settings.api_keys_file)
    return Keys(tuple(keys))


def key_warnings(settings: Settings, keys: Keys) -> tuple[str, ...]:
    """What is unwise about the keys and their file, one line each."""
    warnings = []
    short = sum(key.is_short for key in keys.keys)
    if short:
        warnings.append(f"{short} of {len(keys.keys)} keys have fewer than {SHORT_KEY} characters: they can be guessed")
    file = settings.api_keys_file
    if file is not None and file.stat().st_mode & stat.S_IROTH:
        warnings.append(f"api_keys_file {file} can be read by every user of the machine: chmod o-r")
    return tuple(warnings)


def _keys_of(file: Path) -> Sequence[Key]:
    try:
        content = file.read_text(encoding="utf-8")
        others_write = file.stat().st_mode & stat.S_IWOTH
    except OSError as error:
        raise SettingsError(f"api_keys_file {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"api_keys_file {file} must be UTF-8 text") from None
    if others_write:
        raise SettingsError(f"api_keys_file {file} must not be writable by every user of the machine: chmod o-w")
    lines = [(number, line.strip()) for number, line in enumerate(content.splitlines(), 1)]
    found = [_key(line, f"api_keys_file {file} line {number}") for number, line in lines if line and line[0] != "#"]
    if not found:
        raise SettingsError(f"api_keys_file {file} must hold at least one key, got none")
    return found


def _key(written: str, where: str) -> Key:
    """`where` names the key in errors, which never repeat it."""
    secret, *attributes = written.split()
    hashed = _DIGEST.fullmatch(secret)
    if hashed is None and secret.lower().startswith("sha256:"):
        raise SettingsError(f"{where} must be sha256: and 64 hexadecimal digits")
    if hashed is None and len(secret) < LEAST_KEY:
        raise SettingsError(f"{where} must have at least {LEAST_KEY} characters")
    said: dict[str, str] = {}
    for attribute in attributes:
        name, equals, value = attribute.partition("=")
        if not equals or name not in ("role", "name", "weight") or name in said:
            raise SettingsError(
                f"{where} may be followed by role=ROLE, name=NAME and weight=NUMBER, once each, and nothing else"
            )
        said[name] = value
    role = next((role for role in ROLES if role == said.get("role", "robot")), None)
    if role is None:
        raise SettingsError(f"{where} must have one of the roles {', '.join(ROLES)}")
    if "name" in said and not _NAME.fullmatch(said["name"]):
        raise SettingsError(f"{where} must have a name of 1 to 64 letters, digits, dots, dashes and underscores")
    weight = float(said.get("weight", "1")) if _NUMBER.fullmatch(said.get("weight", "1")) else 0.0
    if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
        raise SettingsError(f"{where} must have a weight of {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}")
    digest = bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(secret.encode()).digest()
    return Key(digest, _caller(digest, role, said.get("name"), weight), hashed is None and len(secret) < SHORT_KEY)


def _caller(digest: bytes, role: Role, name: str | None, weight: float) -> Caller:
    party = f"name:{name}" if name else f"key:{digest.hex()}"
    return Caller(name=party, owner=party, role=role, weight=weight)


def _state(file: Path | None) -> tuple[int, ...]:
    """What changes with a file's content, wherever a link leads."""
    try:
        found = file.stat() if file is not None else None
    except OSError:
        return ()
    return () if found is None else (found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)
