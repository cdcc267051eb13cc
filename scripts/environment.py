"""Makes .venv, and makes it again where it cannot be used. `scripts/setup` runs this with the Python to take.

Needs nothing but the standard library, and runs under every Python that Presage does.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".presage-setup"  # what was installed: a digest of what it was made from, then the extras
UNFINISHED = VENV / ".presage-unfinished"  # there while something is being installed
LOG = VENV / "setup.log"  # all that pip said, the last time

CHECKS = "service,http,dev,docs,sim,datasets,train,mujoco"
"""What scripts/test uses."""

WHEELS_ONLY = {
    "sim": "the tests of Push-T's robot are skipped",
    "mujoco": "the tests of MuJoCo's robots are skipped",
}
"""Extras that do without: they have wheels for fewer Pythons and machines than the rest, and nothing is built here."""

DOWNLOADS = {"": (0.15, 0.35), "dev": (0.5, 1.9)}
"""Gigabytes to download and on the disk without torch: the runtime alone, and with what the checks use."""
TORCH = {"CPUs": (0.2, 0.71), "CUDA": (2.6, 4.7)}
"""Gigabytes to download and on the disk of torch and what it brings, by build."""


def main() -> int:
    given = os.environ.get("EXTRAS", CHECKS)
    wanted = {part.strip() for part in given.split(",") if part.strip()}
    if unknown := wanted - _extras():
        return _failed(f"EXTRAS must be among {', '.join(sorted(_extras()))}, got {', '.join(sorted(unknown))}")
    if why := _unusable():
        if VENV.is_symlink():
            return _failed(f".venv {why}, and is a link to {os.readlink(VENV)}: remove it or mend what it leads to")
        if VENV.exists():
            print(f"Making .venv again: it {why}", flush=True)
            shutil.rmtree(VENV)
    installed = _installed_extras()
    if not why and wanted <= installed and _installed_digest() == _digest():
        return 0
    began = time.monotonic()
    try:
        if (why and not _create()) or not _install(wanted | installed):
            return 1
    except KeyboardInterrupt:
        return _failed("Interrupted; the next set-up makes .venv again.") + 129
    print(f"Set up in {time.monotonic() - began:.0f} s: {_sizes()}", flush=True)
    return 0


def _unusable() -> str:
    """Why .venv must be made (again), as what follows ".venv"; empty for one that can be used."""
    if not VENV.exists() and not VENV.is_symlink():
        return "is not there"
    if UNFINISHED.exists():
        return "was left half made"
    found = _asked(
        "import sys, importlib.util as u; "
        "print('%d.%d' % sys.version_info[:2], sys.implementation.name, u.find_spec('pip') is not None)"
    )
    if found is None:
        return "has no Python that runs"
    version, implementation, has_pip = found.split()
    activate = VENV / "bin/activate"
    places = "|".join(re.escape(str(place)) for place in (VENV, VENV.resolve()))
    if not activate.exists() or not re.search(rf"(?<![\w/.-])({places})(?![\w/.-])", activate.read_text()):
        return "was made in another folder, which its scripts lead to"
    if not list(VENV.glob(f"lib/python{version}/site-packages")):
        return f"was made by another Python than the {version} that it leads to now"
    if has_pip != "True":
        return "has no pip"
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    chosen = os.environ.get("PYTHON") or not STAMP.exists()  # what works stays, unless another Python is asked for
    if tuple(map(int, version.split("."))) < (3, 10) or (
        chosen and (version, implementation) != (ours, sys.implementation.name)
    ):
        return f"was made by {implementation} {version}, not {sys.implementation.name} {ours}"
    return ""


def _asked(code: str) -> str | None:
    """What .venv's Python prints for this code; None where it fails."""
    try:
        done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _create() -> bool:
    """An empty .venv."""
    done = subprocess.run([sys.executable, "-m", "venv", VENV], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        _failed(f"{sys.executable} could not make .venv: {(done.stdout + done.stderr).strip()}")
        return False
    return True


def _install(extras: set[str]) -> bool:
    """The runtime and these extras, pinned. What must be there first, what may be missing after it."""
    UNFINISHED.touch()
    LOG.write_text("")
    version = _asked("import platform; print(platform.python_version())") or ""
    optional = sorted(extras & set(WHEELS_ONLY))
    certain = sorted(extras - set(WHEELS_ONLY))
    print(f"Setting up .venv with Python {version}: {', '.join(certain + optional) or 'the runtime alone'}", flush=True)
    if shutil.which("uv"):
        print("with uv", flush=True)
    else:
        # An older pip fetches torch to read what it needs, and says less of what it does.
        _pip(["--quiet", "--upgrade", "pip"], _quiet)
    print(_announced(extras), flush=True)
    project = f".[{','.join(certain)}]" if certain else "."
    if not _installed(["-c", "constraints.txt", "-e", project]):
        if "Installing collected packages: " not in LOG.read_text():
            UNFINISHED.unlink()  # nothing was changed: what was there before is whole
        return False
    for name in optional:
        wheels = ["--only-binary", ":all:", "-c", "constraints.txt", "-e", f".[{','.join([*certain, name])}]"]
        if why := _pip(wheels, _Progress()):
            here = f"Python {version} on {platform.machine()}"
            print(f"the extra {name} cannot be had for {here} ({why}): {WHEELS_ONLY[name]}", flush=True)
    # It asks for numpy 1, and does as well with numpy 2.
    if "dev" in extras and (why := _pip(["--no-deps", "-c", "constraints.txt", "openpi-client"], _Progress())):
        print(f"openpi-client cannot be had ({why}): the tests that drive the service with it are skipped", flush=True)
    STAMP.write_text("\n".join([_digest(), *sorted(extras)]) + "\n")
    UNFINISHED.unlink()
    return True


def _installed(arguments: list[str]) -> bool:
    """With uv where it is there, else or where it fails with pip; the reason is told where that fails too."""
    if uv := shutil.which("uv"):
        # uv reads neither pip's configuration nor its variables
        links = os.environ.get("PIP_FIND_LINKS", "").split()
        found = [part for link in links for part in ("--find-links", link)]
        if subprocess.run([uv, "pip", "install", "--python", PYTHON, *found, *arguments], check=False).returncode == 0:
            return True
        print("uv could not install this; trying pip", flush=True)
    if why := _pip(arguments, _Progress()):
        tail = [line for line in LOG.read_text().splitlines() if line.strip()]
        errors = [line for line in tail if line.lstrip().startswith("ERROR:")]
        _failed(f"pip could not install Presage: {why}")
        for line in (errors or tail)[-12:]:
            print(f"  {line}", file=sys.stderr)
        print(f"All that pip said is in {LOG.relative_to(ROOT)}; run this again once that is mended.", file=sys.stderr)
        return False
    return True


def _pip(arguments: list[str], heard: Callable[[str], None]) -> str:
    """Run pip's install; empty, or the last reason it gave for failing. Every line is heard and logged."""
    command = [str(PYTHON), "-m", "pip", "install", "--no-warn-conflicts", "--no-input", "--progress-bar", "off"]
    command += ["--no-compile"]  # what is used is compiled then: 0.1 GB and half a minute less
    last = ""
    with LOG.open("a", encoding="utf-8", errors="replace") as log:
        log.write(f"$ {' '.join(map(str, command + arguments))}\n")
        process = subprocess.Popen(
            command + arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            log.flush()
            heard(line.strip())
            if line.startswith("ERROR:"):
                last = line.removeprefix("ERROR:").strip()
        failed = process.wait() != 0
    heard("")
    return (last or "see the log") if failed else ""


def _quiet(line: str) -> None:
    """Nothing is shown."""


class _Progress:
    """Lines of pip as progress: what is large gets a line, the rest is counted in one that is written over."""

    LARGE_MB = 10.0

    def __init__(self) -> None:
        self._found: set[str] = set()
        self._fetched_mb = 0.0
        self._over = sys.stdout.isatty()
        self._width = 0

    def __call__(self, line: str) -> None:
        if not line:
            self._line("")
        elif match := re.match(r"(?:Collecting|Requirement already satisfied:|Processing|Obtaining) ?([\w.-]*)", line):
            self._found.add(match[1].lower())
            self._line(f"choosing versions: {len(self._found)} packages")
        elif match := re.match(r"Downloading (\S+) \(([\d.]+) ([kKMG]?)B\)", line):
            self._download(
                match[1].rsplit("/", 1)[-1],
                float(match[2]) * {"k": 1e-3, "K": 1e-3, "M": 1, "G": 1e3}.get(match[3], 1e-6),
            )
        elif line.startswith("Installing collected packages:"):
            number = line.count(",") + 1
            self._say(f"  fetched {self._fetched_mb:.0f} MB; installing {number} packages ...")

    def _download(self, name: str, size_mb: float) -> None:
        if name.endswith(".metadata"):
            return
        self._fetched_mb += size_mb
        if size_mb >= self.LARGE_MB:
            self._say(f"  fetching {name} ({size_mb:.0f} MB)")
        else:
            self._line(f"fetching: {self._fetched_mb:.0f} MB so far")

    def _say(self, text: str) -> None:
        self._line("")
        print(text, flush=True)

    def _line(self, text: str) -> None:
        """One line that the next one takes the place of; on terminals alone."""
        if self._over:
            print("\r" + (f"  {text}" if text else "").ljust(self._width) + ("" if text else "\r"), end="", flush=True)
            self._width = len(text) + 2 if text else 0


def _announced(extras: set[str]) -> str:
    """The size to come, in words."""
    download, disk = DOWNLOADS["dev" if "dev" in extras else ""]
    build = _torch_build()
    sizes = " or ".join(
        f"{download + TORCH[each][0]:.1f} GB to fetch and {disk + TORCH[each][1]:.1f} GB on disk with torch for {each}"
        for each in ([build] if build else TORCH)
    )
    return f"About {sizes}; what is in pip's cache or here already is not fetched."


def _torch_build() -> str:
    """Which build of torch pip would take, by its name in TORCH; empty where that cannot be told."""
    if sys.platform != "linux":
        return "CPUs"
    command = [
        PYTHON,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--no-deps",
        "--ignore-installed",
        "-c",
        "constraints.txt",
        "torch",
    ]
    if (tuple(map(int, (_asked("import pip; print(pip.__version__)") or "0").split(".")[:1])) or (0,)) < (25,):
        return ""  # it would fetch all of it to say so
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return ""
    match = re.search(r"Would install torch-(\S+)", done.stdout)
    return "" if match is None else "CPUs" if "cpu" in match[1] else "CUDA"


def _sizes() -> str:
    """How many packages .venv holds, and how large it is."""
    packages = sum(1 for each in VENV.glob("lib/python*/site-packages/*.dist-info"))
    size = sum(each.lstat().st_blocks * 512 for each in _files(VENV))
    return f"{packages} packages, {size / 1e9:.2f} GB in .venv"


def _files(folder: Path) -> Iterable[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            yield Path(place, name)


def _extras() -> set[str]:
    """The names of pyproject.toml's extras, without a TOML reader, which Python has from 3.11 on."""
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE))


def _digest() -> str:
    """Of all that decides what is installed."""
    version = _asked("import platform; print(platform.python_version(), platform.machine())")
    parts = [(ROOT / "pyproject.toml").read_bytes(), (ROOT / "constraints.txt").read_bytes(), str(version).encode()]
    return hashlib.sha256(b"\0".join([*parts, str(VENV.resolve()).encode()])).hexdigest()


def _installed_digest() -> str:
    return STAMP.read_text().split("\n")[0] if STAMP.exists() else ""


def _installed_extras() -> set[str]:
    return set(STAMP.read_text().split()[1:]) & _extras() if STAMP.exists() else set()


def _failed(message: str) -> int:
    print(message, file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
