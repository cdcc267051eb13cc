"""FFmpeg as wheels bring it along, which advisories of Python packages do not name: each one's version and whose it is.

`python3 scripts/bundled.py .venv`. Fails for one that is older than the oldest branch still kept, unless it is known.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

OLDEST_KEPT = (5, 1)  # branches that get fixes; https://ffmpeg.org/download.html#releases
KNOWN = {("decord", "4.1.6")}  # there is no newer wheel: it reads MP4 and Matroska alone, in fenced processes
VERSION = re.compile(rb"FFmpeg version (n?\d+\.\d+(?:\.\d+)?)")


def bundled(environment: Path) -> list[tuple[str, str]]:
    """Wheel and version of each FFmpeg in an environment."""
    found = set()
    for path in environment.glob("lib/python*/site-packages/**/*libav*.so*"):
        version = VERSION.search(path.read_bytes())
        if version is not None:
            folder = path.relative_to(next(each for each in path.parents if each.name == "site-packages")).parts[0]
            found.add((folder.removesuffix(".libs"), version[1].decode().lstrip("n")))
    return sorted(found)


def main() -> int:
    outdated = 0
    for wheel, version in bundled(Path(sys.argv[1])):
        is_old = tuple(int(part) for part in version.split(".")[:2]) < OLDEST_KEPT
        is_known = (wheel, version) in KNOWN
        state = "known to be out of date" if is_known else "out of date" if is_old else "kept"
        print(f"{wheel} brings FFmpeg {version}: {state}")
        outdated += is_old and not is_known
    return int(outdated > 0)


if __name__ == "__main__":
    sys.exit(main())
