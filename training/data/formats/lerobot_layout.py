"""Where a LeRobot dataset keeps its episodes, by its description and listings: files, parts of clips, numbers of rows.

Version 2 keeps a table and a clip for each episode, and names them by templates. Version 3 keeps many episodes in each
file, and says in `meta/episodes/` where one begins. A listing that contradicts itself is a problem of its episodes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.data.dataset import DatasetError
from training.data.formats.parquet import read_columns, whole_column
from training.data.pictures import absent

INFO = Path("meta/info.json")
MAX_META_BYTES = 256 * 2**20
_TEMPLATES = {
    "2": (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
    "3": (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
}


@dataclass(frozen=True)
class EpisodePlace:
    """Where an episode lies."""

    index: int  # its number in the tables
    length: int  # frames
    table: Path
    clip: Path | None  # None: the frames are images in the table
    clip_start_s: float = 0.0
    clip_end_s: float | None = None  # None: with the clip, or nobody says
    problem: str = ""  # what keeps it from being read at all


def listed_places(path: Path, info: Mapping[str, Any], version: str, camera: str) -> tuple[EpisodePlace, ...]:
    """Every listing of an episode, by index. `version` is "2" or "3"; no camera: the frames are in the tables."""
    keys = ("data_path", "video_path")
    templates = tuple(str(info.get(key) or usual) for key, usual in zip(keys, _TEMPLATES[version], strict=True))
    return (_places_2 if version == "2" else _places_3)(path, info, templates, camera)


def _places_2(path: Path, info: Mapping[str, Any], templates: tuple[str, ...], camera: str) -> tuple[EpisodePlace, ...]:
    """Where version 2 keeps its episodes: `meta/episodes.jsonl` counts them, templates name their files."""
    listing = path / "meta" / "episodes.jsonl"
    chunk = int(positive_number(info, "chunks_size", path / INFO))
    places = []
    for line, text in enumerate(_read_text(listing).split("\n"), start=1):  # a task's text may hold other breaks
        if not text.strip():
            continue
        where = f"{listing} line {line}"
        entry = _json_object(text, where)
        index, length = _whole(entry, "episode_index", where), _whole(entry, "length", where)
        values = {"episode_chunk": index // chunk, "episode_index": index, "video_key": camera}
        table, clip = (_inside(path, _fill(template, values)) for template in templates)
        places.append(EpisodePlace(index, length, table, clip if camera else None))
    owners: dict[Path, set[int]] = {}
    for place in places:
        if place.clip is not None:
            owners.setdefault(place.clip, set()).add(place.index)
    return tuple(
        replace(
            place, problem=f"has the clip of {len(owners[place.clip])} episodes, {place.clip.name}, which say no part"
        )
        if place.clip is not None and len(owners[place.clip]) > 1
        else place
        for place in places
    )


def _places_3(path: Path, info: Mapping[str, Any], templates: tuple[str, ...], camera: str) -> tuple[EpisodePlace, ...]:
    """Where version 3 keeps its episodes: the tables under `meta/episodes/` say file and time of each."""
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    if camera:
        columns += [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    places = []
    ends: list[float | None]
    files = sorted((path / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DatasetError(f"{path / 'meta' / 'episodes'}: holds no chunk-*/file-*.parquet")
    for file in files:
        until = f"videos/{camera}/to_timestamp"
        table = read_columns(file, [*columns, until])
        for column in columns:
            whole_column(table, column, str(file))
        ends = table.column(until).to_pylist() if camera and until in table.schema.names else [None] * table.num_rows
        for entry, end in zip(table.to_pylist(), ends, strict=True):
            place, clip = {"chunk_index": entry[columns[2]], "file_index": entry[columns[3]]}, None
            start = 0.0
            if camera:
                spot = {"video_key": camera, "chunk_index": entry[columns[4]], "file_index": entry[columns[5]]}
                clip, start = _inside(path, _fill(templates[1], spot)), float(entry[columns[6]])
            home = _inside(path, _fill(templates[0], place))
            last = None if end is None else float(end)
            places.append(EpisodePlace(int(entry["episode_index"]), int(entry["length"]), home, clip, start, last))
    rate = positive_number(info, "fps", path / INFO)
    return _without_contradictions(tuple(sorted(places, key=lambda place: place.index)), rate)


def _without_contradictions(places: tuple[EpisodePlace, ...], rate_hz: float) -> tuple[EpisodePlace, ...]:
    """Parts of clips that run backwards, and parts that two episodes claim, are problems of those episodes.

    Of two that overlap, the one whose part is as long as its rows is believed where the other's is not.
    """
    checked = list(places)
    claims: dict[tuple[Path, float, float, int], int] = {}
    for at, place in enumerate(checked):
        if place.clip is None or place.clip_end_s is None:
            continue
        begin, end = place.clip_start_s, place.clip_end_s
        if not (0 <= begin < end):
            checked[at] = replace(place, problem=f"its part of {place.clip.name} is {begin:.3f} to {end:.3f} s")
        else:
            claims[place.clip, begin, end, at] = at
    half = 0.5 / rate_hz
    reaches: dict[Path, int] = {}  # of each clip, the episode so far whose part ends last
    for clip, begin, _, at in sorted(claims):
        before = reaches.get(clip)
        if before is not None and (places[before].clip_end_s or 0.0) - begin > half and not _same(places, before, at):
            one, other = _as_long_as_its_rows(places[before], half), _as_long_as_its_rows(places[at], half)
            for mine, theirs, agrees, opposed in ((before, at, one, other), (at, before, other, one)):
                if not agrees or opposed:
                    checked[mine] = replace(places[mine], problem=_overlap(places[mine], places[theirs]))
        if before is None or (places[at].clip_end_s or 0.0) > (places[before].clip_end_s or 0.0):
            reaches[clip] = at
    return tuple(checked)


def _same(places: tuple[EpisodePlace, ...], one: int, other: int) -> bool:
    """Whether these are listings of one episode, which is another problem."""
    return places[one].index == places[other].index


def _as_long_as_its_rows(place: EpisodePlace, half: float) -> bool:
    span = (place.clip_end_s or 0.0) - place.clip_start_s
    return abs(span - place.length * 2 * half) <= half


def _overlap(place: EpisodePlace, other: EpisodePlace) -> str:
    assert place.clip is not None
    own, its = (f"{each.clip_start_s:.3f} to {each.clip_end_s:.3f} s" for each in (place, other))
    return f"its part of {place.clip.name}, {own}, overlaps with that of episode {other.index}, {its}"


def without_doubles(places: tuple[EpisodePlace, ...]) -> tuple[EpisodePlace, ...]:
    """An episode that is listed again is a problem; one that is listed otherwise the second time, twice."""
    first: dict[int, int] = {}
    checked = list(places)
    for at, place in enumerate(places):
        if place.index not in first:
            first[place.index] = at
            continue
        before = first[place.index]
        checked[at] = replace(place, problem="is listed again: an episode counts once")
        if replace(place, problem="") != replace(places[before], problem=""):
            checked[before] = replace(places[before], problem="is listed twice, and differently")
    return tuple(checked)


def counted(info: Mapping[str, Any], listed: int) -> tuple[str, ...]:
    """A note where the description counts other episodes than the listing."""
    total = info.get("total_episodes")
    if not isinstance(total, int) or isinstance(total, bool) or total == listed:
        return ()
    return (f"{INFO} counts {total} episodes, {listed} are listed",)


def _fill(template: str, values: Mapping[str, Any]) -> str:
    """A path from a template of the dataset's own: names and widths only, none of Python's format language."""

    def fill(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise DatasetError(f"path template {template!r}: {match[1]} is not known here")
        return str(values[match[1]]).zfill(int(match[2] or 0))

    return re.sub(r"\{(\w+)(?::0(\d)d)?\}", fill, template)


def _inside(root: Path, relative: str) -> Path:
    """A file of the dataset. Raises DatasetError for a path that leads out of it."""
    path = root / relative
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise DatasetError(f"{root}: names a file outside itself: {relative}")
    return path


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_META_BYTES:
            raise DatasetError(f"{path}: has more than {MAX_META_BYTES} bytes")
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: {absent(path)}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is not text") from error


def read_description(path: Path) -> dict[str, Any]:
    return _json_object(_read_text(path), str(path))


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DatasetError(f"{where}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{where}: must hold an object, got {type(value).__name__}")
    return value


def positive_number(entry: Mapping[str, Any], key: str, where: object) -> float:
    value = entry.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise DatasetError(f"{where}: {key} must be a positive number, got {value!r}")
    return float(value)


def _whole(entry: Mapping[str, Any], key: str, where: object) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DatasetError(f"{where}: {key} must be a whole number, got {value!r}")
    return value
