"""A row's frame is the one nearest to the row's own timestamp, or the episode is refused; never another frame."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.support.training.numbered import (
    CAMERA,
    Encoding,
    Rows,
    numbers_of,
    rows,
    write_listing,
    write_numbered_clip,
    write_numbered_lerobot,
)
from training.data.dataset import Dataset, DatasetError
from training.data.formats.opening import open_dataset
from training.data.inspection import Inspection, inspect
from training.data.loading import load_episodes

pytest.importorskip("pyarrow", reason="needs the extra datasets")

VERSIONS = pytest.mark.parametrize("version", ["2", "3"])


def shown(dataset: Dataset, index: int) -> list[int]:
    return numbers_of(list(dataset.frames(index)))


def problems(found: Inspection) -> dict[str, str]:
    return {episode.name: "; ".join(episode.problems) for episode in found.broken}


def assert_paired(dataset: Dataset, episodes: list[Rows]) -> None:
    for index in reversed(range(len(episodes))):
        assert dataset.episode(index).actions[:, 0].astype(int).tolist() == episodes[index].wanted
        assert shown(dataset, index) == episodes[index].wanted, f"episode {index}"


@VERSIONS
@pytest.mark.parametrize(("video", "step"), [(30, 1), (30, 2), (30, 3), (60, 2), (50, 5), (25, 4)])
def test_a_thinned_table_keeps_its_frames(version: str, video: int, step: int, tmp_path: Path) -> None:
    episodes = [rows(range(40), video, step=step), rows(range(100, 137), video, step=step)]
    dataset = open_dataset(write_numbered_lerobot(tmp_path / "set", version, episodes, video, video / step))
    assert_paired(dataset, episodes)
    assert inspect(dataset).errors == ()


@VERSIONS
def test_a_table_whose_first_and_last_rows_were_cut_keeps_its_frames_and_says_so(version: str, tmp_path: Path) -> None:
    episodes = [rows(range(30), 10, cut=5), rows(range(50, 80), 10, cut=3, end=20), rows(range(90, 110), 10)]
    dataset = open_dataset(write_numbered_lerobot(tmp_path / "set", version, episodes, 10, 10))
    assert_paired(dataset, episodes)
    found = inspect(dataset)
    assert found.errors == ()
    assert found.notes == (
        "its rows begin 0.500 s after the first frame of its clip, as their timestamps say",
        "its rows begin 0.300 s after the first frame of its clip, as their timestamps say",
    )


@VERSIONS
def test_times_that_count_from_elsewhere_are_kept_in_double_precision(version: str, tmp_path: Path) -> None:
    epoch = 1_751_000_000.25
    whole = Rows(tuple(range(25)), tuple(range(20)), tuple(epoch + at / 10 for at in range(20)))
    cut = Rows(
        tuple(range(40, 60)), tuple(range(5, 20)), tuple(epoch + 9 + at / 10 for at in range(15)), tuple(range(5, 20))
    )
    path = write_numbered_lerobot(tmp_path / "set", version, [whole, cut], 10, 10, time_type=np.float64)
    dataset = open_dataset(path)
    assert_paired(dataset, [whole, cut])
    found = inspect(dataset)
    assert found.errors == ()
    assert "its first row is taken for frame 0" in found.notes[0]
    assert "its first row is taken for frame 5" in found.notes[1]


def test_a_clip_that_begins_late_is_counted_from_its_first_frame(tmp_path: Path) -> None:
    episodes = [rows(range(20), 30)]
    path = write_numbered_lerobot(tmp_path / "set", "2", episodes, 30, 30)
    write_numbered_clip(path / f"videos/chunk-000/{CAMERA}/episode_000000.mp4", range(20), 30, first_pts=7)
    assert_paired(open_dataset(path), episodes)


def test_rows_past_the_clip_are_refused(tmp_path: Path) -> None:
    late = Rows(tuple(range(20)), tuple(range(20)), tuple(0.3 + at / 10 for at in range(20)))
    found = inspect(open_dataset(write_numbered_lerobot(tmp_path / "set", "2", [late], 10, 10)))
    assert "has no frame at 2.000 s: 17 of 20 frames are there" in problems(found)["episode 0"]


def test_a_frame_that_the_clip_lacks_is_not_replaced_by_its_neighbor(tmp_path: Path) -> None:
    path = write_numbered_lerobot(tmp_path / "set", "2", [rows(range(20), 10)], 10, 10)
    clip = path / f"videos/chunk-000/{CAMERA}/episode_000000.mp4"
    write_numbered_clip(clip, range(40), 20)  # 20 a second, of which some are left out
    import av

    whole = clip.with_name("whole.mp4")
    clip.rename(whole)
    with av.open(str(whole)) as source, av.open(str(clip), "w") as target:
        stream = target.add_stream("libx264", rate=20, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for at, frame in enumerate(source.decode(video=0)):
            if at not in (9, 10, 11):
                again = frame.reformat(format="yuv420p")
                again.pts, again.time_base = at, Fraction(1, 20)
                target.mux(stream.encode(again))
        target.mux(stream.encode(None))
    with pytest.raises(DatasetError, match=r"has no frame at 0\.500 s"):
        shown(open_dataset(path), 0)


def test_a_table_at_another_rate_than_it_says_is_refused(tmp_path: Path) -> None:
    episodes = [rows(range(40), 30, step=2)]  # 15 rows a second, called 10
    found = inspect(open_dataset(write_numbered_lerobot(tmp_path / "set", "2", episodes, 30, 10)))
    assert problems(found)["episode 0"] == "has 15 rows a second by its timestamps where 10 are expected"


@VERSIONS
def test_an_episode_that_is_listed_twice_counts_once(version: str, tmp_path: Path) -> None:
    episodes = [rows(range(10 * at, 10 * at + 10), 10) for at in range(4)]
    path = write_numbered_lerobot(tmp_path / "set", version, episodes, 10, 10)
    if version == "2":
        listing = path / "meta/episodes.jsonl"
        lines = listing.read_text().splitlines()
        listing.write_text("\n".join([*lines, lines[3], lines[1]]) + "\n")
    else:
        spans = [(at, 10, float(at), at + 1.0) for at in range(4)]
        write_listing(path, [*spans, spans[3], spans[1]])
    found = inspect(open_dataset(path))
    assert [(each.name, each.problems) for each in found.broken] == [
        ("episode 1", ("is listed again: an episode counts once",)),
        ("episode 3", ("is listed again: an episode counts once",)),
    ][:: 1 if version == "3" else -1]
    loaded, skipped = load_episodes(open_dataset(path), tmp_path / "store", 32)
    assert (len(loaded.frames), len(skipped)) == (4, 2)


def test_an_episode_that_is_listed_twice_and_differently_is_not_believed(tmp_path: Path) -> None:
    path = write_numbered_lerobot(tmp_path / "set", "2", [rows(range(10), 10), rows(range(20, 30), 10)], 10, 10)
    with (path / "meta/episodes.jsonl").open("a") as listing:
        listing.write(json.dumps({"episode_index": 1, "tasks": [], "length": 9}) + "\n")
    found = problems(inspect(open_dataset(path)))
    assert list(found) == ["episode 1"]
    assert len([each for each in inspect(open_dataset(path)).broken if each.name == "episode 1"]) == 2


def test_parts_of_a_clip_that_contradict_each_other_are_refused_by_episode(tmp_path: Path) -> None:
    episodes = [rows(range(10 * at, 10 * at + 10), 10) for at in range(5)]
    path = write_numbered_lerobot(tmp_path / "set", "3", episodes, 10, 10)
    spans = [(at, 10, float(at), at + 1.0) for at in range(5)]
    spans[3] = (3, 10, 2.0, 4.0)  # begins where episode 2 begins
    write_listing(path, spans)
    found = problems(inspect(open_dataset(path)))
    assert list(found) == ["episode 3"]
    assert "2.000 to 4.000 s, overlaps with that of episode 2, 2.000 to 3.000 s" in found["episode 3"]
    spans[3] = (3, 10, 2.0, 3.0)  # is all of episode 2
    write_listing(path, spans)
    assert list(problems(inspect(open_dataset(path)))) == ["episode 2", "episode 3"]
    spans[3] = (3, 10, 3.0, 3.4)  # ends before its rows do
    write_listing(path, spans)
    found = problems(inspect(open_dataset(path)))
    assert list(found) == ["episode 3"]
    assert "its rows end 0.900 s after its first frame, past its part, 3.000 to 3.400 s" in found["episode 3"]
    spans[3] = (3, 10, 4.0, 3.0)
    write_listing(path, spans)
    assert "is 4.000 to 3.000 s" in problems(inspect(open_dataset(path)))["episode 3"]


def test_a_copy_of_an_episode_under_another_number_is_refused(tmp_path: Path) -> None:
    episodes = [rows(range(10), 10), rows(range(20, 30), 10)]
    path = write_numbered_lerobot(tmp_path / "set", "2", episodes, 10, 10)
    import pyarrow
    from pyarrow import parquet

    table = parquet.read_table(path / "data/chunk-000/episode_000000.parquet")
    renumbered = table.set_column(
        table.schema.get_field_index("episode_index"), "episode_index", pyarrow.array([1] * 10)
    )
    parquet.write_table(renumbered, path / "data/chunk-000/episode_000001.parquet")
    assert problems(inspect(open_dataset(path))) == {}  # the same actions before other pictures
    clips = path / f"videos/chunk-000/{CAMERA}"
    (clips / "episode_000001.mp4").write_bytes((clips / "episode_000000.mp4").read_bytes())
    assert problems(inspect(open_dataset(path))) == {"episode 1": "repeats episode 0: an episode counts once"}
    loaded, skipped = load_episodes(open_dataset(path), tmp_path / "store", 32)
    assert (len(loaded.frames), skipped[0].reason) == (1, "repeats episode 0: an episode counts once")


def test_a_clip_of_several_episodes_that_say_no_part_of_it_is_refused(tmp_path: Path) -> None:
    episodes = [rows(range(10), 10), rows(range(20, 30), 10)]
    path = write_numbered_lerobot(tmp_path / "set", "2", episodes, 10, 10)
    info = json.loads((path / "meta/info.json").read_text())
    info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_000000.mp4"
    (path / "meta/info.json").write_text(json.dumps(info))
    found = problems(inspect(open_dataset(path)))
    assert found["episode 1"] == "has the clip of 2 episodes, episode_000000.mp4, which say no part"
    assert list(found) == ["episode 0", "episode 1"]


def test_line_breaks_within_a_task_break_no_line(tmp_path: Path) -> None:
    path = write_numbered_lerobot(tmp_path / "set", "2", [rows(range(10), 10), rows(range(20, 30), 10)], 10, 10)
    listing = path / "meta/episodes.jsonl"
    lines = [json.loads(line) for line in listing.read_text().splitlines()]
    lines[0]["tasks"] = ["put it\u2028down\u0085now"]
    listing.write_text("\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\r\n", "utf-8")
    assert inspect(open_dataset(path)).errors == ()


def test_links_are_followed_as_the_hubs_cache_needs_and_one_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    episodes = [rows(range(12), 10), rows(range(20, 32), 10)]
    source = write_numbered_lerobot(tmp_path / "blobs", "3", episodes, 10, 10)
    linked = tmp_path / "snapshot"
    for number, file in enumerate(sorted(file for file in source.rglob("*") if file.is_file())):
        blob = tmp_path / "store" / f"{number:040x}"
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(file.read_bytes())
        link = linked / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert_paired(open_dataset(linked), episodes)
    (linked / "README.md").symlink_to("../nowhere")
    loaded, skipped = load_episodes(open_dataset(linked), tmp_path / "frames", 32)
    assert skipped == ()
    assert loaded.notes == (f"{linked / 'README.md'} is a link that leads nowhere",)
    assert inspect(open_dataset(linked)).notes == loaded.notes
    (tmp_path / "store" / f"{number:040x}").unlink()  # the clip
    with pytest.raises(
        DatasetError, match=r"no usable episode: episode 0: .*file-000.mp4: is a link that leads nowhere"
    ):
        load_episodes(open_dataset(linked), tmp_path / "frames", 32)


GROUPS = {
    "open": ("libx264", {"x264-params": "keyint=12:min-keyint=6:open-gop=1:bframes=3:scenecut=0", "crf": "18"}),
    "long": ("libx264", {"g": "250", "bf": "3", "crf": "18"}),
    "refresh": ("libx264", {"x264-params": "intra-refresh=1:keyint=20:bframes=0", "crf": "18"}),
    "hevc open": ("libx265", {"x265-params": "keyint=12:min-keyint=6:open-gop=1:bframes=4:log-level=none"}),
    "vp9": ("libvpx-vp9", {"g": "20", "crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
    "av1": ("libsvtav1", {"g": "20", "crf": "20", "preset": "12"}),
    "mpeg4": ("mpeg4", {"g": "12", "bf": "2", "q:v": "2"}),
}


@pytest.mark.parametrize("name", GROUPS)
def test_an_episode_in_the_middle_of_any_clip_is_read_as_from_its_start(name: str, tmp_path: Path) -> None:
    """Keyframes of open groups and of intra refresh need frames from before: decoding begins where none are needed."""
    import av

    codec, options = GROUPS[name]
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV has no {codec} here")
    episodes = [rows(range(first, first + length), 30) for first, length in ((0, 17), (17, 31), (48, 9), (57, 26))]
    path = write_numbered_lerobot(tmp_path / "set", "3", episodes, 30, 30, Encoding(codec, options))
    dataset = open_dataset(path)
    assert_paired(dataset, episodes)
    with av.open(str(path / f"videos/{CAMERA}/chunk-000/file-000.mp4")) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    first = 0
    for index, episode in enumerate(episodes):
        pictures = np.concatenate(list(dataset.frames(index)))
        assert np.array_equal(pictures, np.stack(whole[first : first + len(episode.numbers)]))
        first += len(episode.numbers)


def random_episodes(seed: int) -> tuple[str, list[Rows], float, float, Encoding, type]:
    """A dataset as labs make them, by chance: rates, thinned and cut tables, clocks, noise in time, and encodings."""
    drawn = np.random.default_rng(seed)
    video = float(drawn.choice([10, 12.5, 15, 24, 25, 29.97, 30, 50, 60]))
    step = int(drawn.integers(1, 7))
    from_epoch = bool(drawn.random() < 0.25)
    episodes, number = [], int(drawn.integers(0, 30000))
    for _ in range(int(drawn.integers(1, 5))):
        count = int(drawn.integers(2 * step + 2, 12 * step + 12))
        cut = int(drawn.integers(0, 6)) if drawn.random() < 0.5 else 0
        end = count - (int(drawn.integers(0, 4)) if drawn.random() < 0.5 else 0)
        kept = tuple(range(min(cut, end - step - 1), end, step)) if cut < end - step else tuple(range(0, end, step))
        noise = drawn.uniform(-0.2, 0.2, len(kept)) * (drawn.random() < 0.3) * (np.array(kept) > 0)
        start = drawn.uniform(1.6e9, 1.8e9) - kept[0] / video if from_epoch else 0.0
        times = tuple(float(start + (place + off) / video) for place, off in zip(kept, noise, strict=True))
        places = kept if from_epoch or drawn.random() < 0.3 else ()
        episodes.append(Rows(tuple(range(number, number + count)), kept, times, places))
        number += count
    version = str(drawn.choice(["2", "3"]))
    options = {"g": str(drawn.integers(1, 40)), "bf": str(drawn.integers(0, 4)), "crf": "20", "preset": "ultrafast"}
    if drawn.random() < 0.5:
        options["x264-params"] = f"open-gop=1:scenecut=0:b-pyramid={drawn.choice(['none', 'normal'])}"
    kind = np.float64 if from_epoch or drawn.random() < 0.3 else np.float32
    return version, episodes, video, video / step, Encoding("libx264", options), kind


@pytest.mark.parametrize("block", range(10))
def test_no_row_of_any_dataset_gets_the_frame_of_another(block: int, tmp_path: Path) -> None:
    """200 datasets in all, of which none has a row that is paired with another's frame and none is refused."""
    wrong, refused = [], []
    for seed in range(20 * block, 20 * block + 20):
        version, episodes, video, rate, encoding, kind = random_episodes(seed)
        path = write_numbered_lerobot(tmp_path / str(seed), version, episodes, video, rate, encoding, kind)
        dataset = open_dataset(path)
        for index, episode in enumerate(episodes):
            try:
                found = shown(dataset, index)
            except DatasetError as error:
                refused.append((seed, index, str(error)))
            else:
                wrong += [(seed, index)] if found != episode.wanted else []
        broken = inspect(dataset, pictures=False).broken
        refused += [(seed, at, each.problems[0]) for at, each in enumerate(broken)]
    assert wrong == []
    assert refused == []
