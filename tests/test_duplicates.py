"""Copies, near-duplicates and bursts: by vectors, by pixels, in a library and by the command."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from mmsearch import find_duplicates
from mmsearch.errors import LibraryNotFound
from mmsearch.indexes.exact import ExactIndex
from mmsearch.retrieval.alignment import AGREED, agreement, least_agreement, thumbnail
from mmsearch.retrieval.duplicate_groups import Duplicates, Group, Kind
from mmsearch.retrieval.duplicates import (
    NEIGHBOURS,
    Collapsed,
    Likeness,
    alike_pairs,
    burst_pairs,
    bursts,
    collapse,
    groups,
    likeness,
    short_of_candidates,
)
from mmsearch.retrieval.encoders.samples import sample_pictures
from mmsearch.retrieval.ingest import index
from tests.conftest import ColourEncoder
from tests.test_cli import MMSEARCH, json_of, run
from tests.test_containers import write_tar

LIKE = Likeness(candidate=0.85, alone=0.95, burst=0.7)
SCENES = [scene.resize((320, 240)) for scene in sample_pictures()[:5]]


def on_a_circle(*degrees: float) -> NDArray[np.float32]:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def random_rows(n: int, dim: int = 8, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# Vectors


def test_thresholds_are_shares_of_the_typical_distance() -> None:
    # Orthogonal: every distance is 1, so the shares themselves.
    like = likeness(np.eye(200, dtype=np.float32))
    assert (like.candidate, like.alone, like.burst) == pytest.approx((0.8, 0.92, 0.7))
    # All between two vectors at a cosine of 0.5: half the distance.
    close = np.full((200, 200), 0.0, np.float32)
    close[:, 0] = np.sqrt(0.5)
    close[np.arange(1, 200), np.arange(1, 200)] = np.sqrt(0.5)
    like = likeness(close[1:])
    assert (like.candidate, like.alone, like.burst) == pytest.approx((0.9, 0.96, 0.85))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_vectors_do_not_say_what_is_typical(n: int) -> None:
    like = likeness(np.tile(on_a_circle(10), (n, 1)))
    assert (like.candidate, like.alone, like.burst) == pytest.approx((0.92, 0.968, 0.88))


def test_equal_vectors_are_always_alike() -> None:
    like = likeness(np.tile(on_a_circle(10), (150, 1)).astype(np.float16))
    assert like.alone < 0.999


@given(st.integers(0, 60), st.integers(0, 5), st.floats(-1, 1))
def test_pairs_are_those_of_a_slow_search(n: int, seed: int, least: float) -> None:
    rows = random_rows(n, 3, seed)
    found = alike_pairs(rows, least)
    scores = rows @ rows.T
    expected = {(i, j) for i in range(n) for j in range(i + 1, n) if scores[i, j] >= least}
    pairs = [*zip(found.first.tolist(), found.second.tolist(), strict=True)]
    assert len(pairs) == len(set(pairs))
    edge = {(i, j) for i in range(n) for j in range(n) if abs(scores[i, j] - least) < 1e-5}
    assert set(pairs) - edge == expected - edge
    assert pairs == sorted(pairs)


def test_pairs_through_an_index_are_the_same() -> None:
    rows = random_rows(300, 4)
    ids = np.random.default_rng(1).permutation(1000)[:300]
    held = ExactIndex(4)
    held.add(ids, rows)
    # One that the library holds and that is not asked about.
    held.add([5000], rows[:1])
    by_index = alike_pairs(rows, 0.95, index=held, ids=ids)
    exact = alike_pairs(rows, 0.95)
    assert by_index.first.tolist() == exact.first.tolist()
    assert by_index.second.tolist() == exact.second.tolist()
    assert by_index.similarity == pytest.approx(exact.similarity, abs=1e-6)


def test_of_one_row_the_most_alike_pairs_are_kept() -> None:
    rows = on_a_circle(0, *np.linspace(20, 1, NEIGHBOURS + 6))
    found = alike_pairs(rows, 0.9)
    of_first = found.second[found.first == 0].tolist()
    assert of_first == [*range(7, NEIGHBOURS + 7)]


def test_no_group_is_a_chain() -> None:
    """Each is 10° from the last: all are linked, few are alike to one of them."""
    rows = on_a_circle(*range(0, 90, 10))
    found = groups(np.arange(100, 109), rows, least=float(np.cos(np.radians(15))))
    assert [group.tolist() for group in found] == [[100, 101], [102, 103], [104, 105], [106, 107]]
    for group in found:
        places = group - 100
        assert (rows[places] @ rows[places[0]] >= np.cos(np.radians(15))).all()


def test_what_a_check_denies_is_no_group() -> None:
    rows = on_a_circle(0, 1, 2)
    found = groups(np.arange(3), rows, least=0.9, check=lambda pairs: pairs.second != 1)
    assert [group.tolist() for group in found] == [[0, 2]]


def test_bursts_need_both_time_and_likeness() -> None:
    rows = on_a_circle(0, 5, 5, 90, 5)
    taken = np.array([100.0, 104.0, 200.0, 101.0, np.nan])
    assert [group.tolist() for group in bursts(np.arange(5), rows, taken, least=0.9)] == [[0, 1]]


@given(st.lists(st.one_of(st.integers(0, 60), st.none()), max_size=40), st.integers(0, 3))
def test_burst_pairs_are_those_of_a_slow_search(at: list[int | None], seed: int) -> None:
    rows = random_rows(len(at), 3, seed)
    taken = np.array([np.nan if time is None else time for time in at], dtype=np.float64)
    found = burst_pairs(rows, taken, 0.2, seconds=5)
    expected = {
        (i, j)
        for i in range(len(at))
        for j in range(i + 1, len(at))
        if abs(taken[i] - taken[j]) <= 5 and rows[i] @ rows[j] >= 0.2
    }
    assert {*zip(found.first.tolist(), found.second.tolist(), strict=True)} == expected


# A ranking


def slowly(
    rows: NDArray[np.float32], taken: NDArray[np.float64], k: int, like: Likeness
) -> list[Collapsed]:
    """Walk down: each into the first group whose answer it duplicates."""
    found: list[tuple[int, list[int]]] = []
    for i in range(len(rows)):
        for row, others in found:
            cosine = float(rows[i] @ rows[row])
            close = abs(taken[i] - taken[row]) <= 10
            if cosine >= like.alone or (close and cosine >= like.burst):
                others.append(i)
                break
        else:
            if len(found) < k:
                found.append((i, []))
    return [Collapsed(row, tuple(others)) for row, others in found]


@st.composite
def rankings(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    # Whole steps of 7°, so that no cosine lies on a threshold.
    degrees = draw(st.lists(st.integers(0, 50).map(lambda step: 7.0 * step), max_size=40))
    times = draw(
        st.lists(
            st.one_of(st.just(np.nan), st.integers(0, 50).map(float)),
            min_size=len(degrees),
            max_size=len(degrees),
        )
    )
    return on_a_circle(*degrees), np.array(times, dtype=np.float64)


@given(rankings(), st.integers(1, 45))
def test_collapsing_is_what_a_slow_walk_gives(
    ranking: tuple[NDArray[np.float32], NDArray[np.float64]], k: int
) -> None:
    rows, taken = ranking
    found = collapse(rows, k, LIKE, taken=taken)
    assert found == slowly(rows, taken, k, LIKE)
    everything = collapse(rows, max(1, len(rows)), LIKE, taken=taken)
    # k is kept where there are enough, and more of them change nothing in the first.
    assert found == everything[:k]
    # Order is kept; nothing is lost and nothing comes twice.
    assert [answer.row for answer in found] == sorted(answer.row for answer in found)
    seen = [row for answer in everything for row in (answer.row, *answer.others)]
    assert sorted(seen) == [*range(len(rows))]
    assert all(list(answer.others) == sorted(answer.others) for answer in everything)
    assert all(other > answer.row for answer in everything for other in answer.others)


def test_collapsing_by_hand() -> None:
    rows = on_a_circle(0, 1, 90, 30, 2)
    assert collapse(rows, 2, LIKE) == [Collapsed(0, (1, 4)), Collapsed(2, ())]
    taken = np.array([0.0, np.nan, 5.0, 9.0, 500.0])
    assert collapse(rows, 3, LIKE, taken=taken) == [Collapsed(0, (1, 3, 4)), Collapsed(2, ())]
    with pytest.raises(ValueError, match="at least 1"):
        collapse(rows, 0, LIKE)


# Pixels


def shown(image: Image.Image, other: Image.Image) -> float:
    return float(agreement(thumbnail(image), thumbnail(other)[None])[0])


@pytest.mark.parametrize("scene", SCENES)
def test_one_photo_agrees_with_itself_however_it_was_altered(scene: Image.Image) -> None:
    assert shown(scene, scene) == pytest.approx(1, abs=1e-5)
    assert shown(scene, scene.resize((150, 110))) > 0.9
    assert shown(scene, scene.crop((20, 10, 310, 235))) > AGREED
    assert shown(scene, ImageEnhance.Brightness(scene).enhance(1.2)) > AGREED
    assert shown(scene, ImageOps.expand(scene, 10, "white")) > AGREED
    assert shown(scene, scene.convert("L").convert("RGB")) > 0.99


def test_different_pictures_do_not_agree() -> None:
    thumbs = np.stack([thumbnail(scene) for scene in SCENES])
    for i, one in enumerate(thumbs):
        assert (np.delete(agreement(one, thumbs), i) < AGREED - 0.1).all()
    assert shown(SCENES[0], ImageOps.mirror(SCENES[0])) < AGREED


def test_pictures_without_detail_agree_by_their_grey() -> None:
    white, grey, other = (Image.new("RGB", (50, 40), (level,) * 3) for level in (255, 128, 125))
    assert shown(white, grey) == 0
    assert shown(grey, other) == 1
    assert shown(grey, SCENES[0]) == 0
    assert shown(SCENES[0], grey) == 0


def test_where_different_pictures_agree_more_is_asked_for() -> None:
    assert least_agreement(np.full(200, 0.4)) == AGREED
    # 99 % stay below 0.9: half way to 1.
    assert least_agreement(np.full(200, 0.9)) == pytest.approx(0.95)
    assert least_agreement(np.full(99, 0.9)) == AGREED


def test_the_background_is_alike_but_no_candidate() -> None:
    found = short_of_candidates(random_rows(300, 4), LIKE, most=50)
    assert 25 <= len(found.first) <= 50
    assert (found.similarity >= LIKE.burst).all()
    assert (found.similarity < LIKE.candidate).all()
    assert len(short_of_candidates(np.eye(3, dtype=np.float32), LIKE).first) == 0


# A library


def at(second: int) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = f"2023:08:12 17:02:{second:02}"
    return exif


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Scene 0 as itself, a copy, smaller and brighter; a burst of two; scene 3 in a tar, too."""
    folder = tmp_path / "al bum"
    (folder / "sub").mkdir(parents=True)
    first, second, third, fourth, _ = SCENES
    first.save(folder / "beach.jpg", quality=95)
    (folder / "sub/beach copy.jpg").write_bytes((folder / "beach.jpg").read_bytes())
    first.resize((160, 120)).save(folder / "small.jpg")
    ImageEnhance.Brightness(first).enhance(1.1).save(folder / "sub/bright.jpg", quality=95)
    second.save(folder / "a.jpg", exif=at(10))
    # Another frame: as alike to the encoder, but nothing lies where it lay.
    ImageOps.flip(ImageOps.mirror(second)).save(folder / "b.jpg", exif=at(14))
    third.save(folder / "lone.png")
    fourth.save(folder / "loose.png")
    write_tar(folder / "shard.tar", {"1.png": (folder / "loose.png").read_bytes()})
    return folder


class Uniform(ColourEncoder):
    """Sees little: every picture is alike to every other but for a bit."""

    def _encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows = super()._encode_pixels(pixels)
        rows[:, 0] += 20
        unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


def told(group: Group) -> tuple[str, str, list[str], list[str]]:
    return (
        group.kind.value,
        group.keep.path,
        [member.path for member in group.others],
        [member.path for member in group.spare],
    )


def look(folder: Path) -> dict[str, tuple[int, int]]:
    """Return all that lies in a folder, with sizes and times, but for the library's own."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted([folder, *folder.rglob("*")])
        if ".mmsearch" not in path.parts
    }


def test_a_library_is_sorted_into_copies_near_duplicates_and_bursts(album: Path) -> None:
    index(album, model=Uniform())
    before = look(album)
    found = find_duplicates(album)
    assert look(album) == before
    assert [told(group) for group in found.groups] == [
        ("copies", "beach.jpg", ["sub/beach copy.jpg"], ["sub/beach copy.jpg"]),
        ("copies", "loose.png", ["shard.tar/1.png"], []),
        ("near", "sub/bright.jpg", ["beach.jpg", "small.jpg"], ["beach.jpg", "small.jpg"])
        if (album / "sub/bright.jpg").stat().st_size > (album / "beach.jpg").stat().st_size
        else (
            "near",
            "beach.jpg",
            ["small.jpg", "sub/bright.jpg"],
            ["small.jpg", "sub/bright.jpg"],
        ),
        ("bursts", "a.jpg", ["b.jpg"], ["b.jpg"])
        if (album / "a.jpg").stat().st_size >= (album / "b.jpg").stat().st_size
        else ("bursts", "b.jpg", ["a.jpg"], ["a.jpg"]),
    ]
    assert found.groups[0].why == "first path"
    assert found.groups[1].why == "a file of its own"
    assert found.unchecked == 0
    copy = (album / "beach.jpg").stat().st_size
    assert found.freeable_bytes([Kind.COPIES]) == copy
    spare = [member for group in found.groups for member in group.spare]
    assert found.freeable_bytes() == sum((album / one.path).stat().st_size for one in spare)
    assert len({one.path for one in spare}) == len(spare)


def near(found: Duplicates) -> list[Group]:
    return [group for group in found.groups if group.kind is Kind.NEAR]


def test_the_larger_is_kept(tmp_path: Path) -> None:
    SCENES[0].resize((160, 120)).save(tmp_path / "a.png")
    SCENES[0].save(tmp_path / "z.jpg")
    index(tmp_path, model=ColourEncoder())
    (group,) = find_duplicates(tmp_path).groups
    assert told(group) == ("near", "z.jpg", ["a.png"], ["a.png"])
    assert group.why == "largest resolution"


def test_what_cannot_be_read_any_more_is_judged_by_vectors_and_never_spare(album: Path) -> None:
    index(album, model=ColourEncoder())
    (album / "small.jpg").write_bytes(b"no picture any more")
    (album / "sub/beach copy.jpg").unlink()
    found = find_duplicates(album)
    small = [
        member for group in near(found) for member in group.others if member.path == "small.jpg"
    ]
    assert len(small) == 1
    assert not small[0].checked
    assert not small[0].spare
    assert found.unchecked == 2
    copies = next(group for group in found.groups if group.kind is Kind.COPIES)
    assert told(copies) == ("copies", "beach.jpg", ["sub/beach copy.jpg"], [])


def test_without_any_file_nothing_is_spare(album: Path) -> None:
    index(album, model=ColourEncoder())
    for path in [*album.rglob("*.jpg"), *album.rglob("*.png"), *album.rglob("*.tar")]:
        path.unlink()
    found = find_duplicates(album)
    assert {group.kind for group in found.groups} >= {Kind.COPIES, Kind.NEAR}
    assert found.freeable_bytes() == 0
    assert found.unchecked == len(
        {member.path for group in found.groups for member in (group.keep, *group.others)}
    )


def test_without_reading_near_duplicates_are_not_spare(album: Path) -> None:
    index(album, model=ColourEncoder())
    found = find_duplicates(album, check=False)
    assert found.compared == 0
    assert near(found)
    assert not any(group.spare for group in near(found))
    assert found.freeable_bytes([Kind.COPIES]) > 0


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_other_names_of_one_file_are_no_copies(tmp_path: Path) -> None:
    SCENES[0].save(tmp_path / "z.png")
    (tmp_path / "a.png").symlink_to(tmp_path / "z.png")
    (tmp_path / "b.png").hardlink_to(tmp_path / "z.png")
    index(tmp_path, model=ColourEncoder())
    assert find_duplicates(tmp_path).groups == ()
    # A copy elsewhere: it is not the link to it that could go.
    outside = tmp_path.with_name("outside.png")
    outside.write_bytes((tmp_path / "z.png").read_bytes())
    (tmp_path / "c.png").symlink_to(outside)
    index(tmp_path, model=ColourEncoder())
    (group,) = find_duplicates(tmp_path).groups
    assert group.spare == ()


def test_kinds_are_chosen_and_checked(album: Path) -> None:
    index(album, model=Uniform())
    assert {group.kind for group in find_duplicates(album, kinds=["near"]).groups} == {Kind.NEAR}
    assert {group.kind for group in find_duplicates(album, kinds=[Kind.COPIES]).groups} == {
        Kind.COPIES
    }
    with pytest.raises(ValueError, match="sideways"):
        find_duplicates(album, kinds=["sideways"])
    with pytest.raises(LibraryNotFound):
        find_duplicates(album / "sub")


# The command


def test_the_command_proposes_and_changes_nothing(album: Path) -> None:
    index(album, model=Uniform())
    before = look(album)
    answer = json_of("dedup", album)
    assert answer["schema"] == 1
    assert [group["kind"] for group in answer["groups"]] == ["copies", "copies", "near", "bursts"]
    copies = answer["groups"][0]
    assert copies["keep"]["path"] == "beach.jpg"
    assert copies["keep"]["spare"] is False
    assert copies["freeable_bytes"] == (album / "beach.jpg").stat().st_size
    assert datetime.fromisoformat(answer["groups"][3]["keep"]["taken"]).year == 2023

    listed = run("dedup", album)
    lines = [line.split("\t") for line in listed.stdout.splitlines()]
    assert lines[0][:3] == ["1", "copies", "keep"]
    assert lines[1][2:] == ["spare", "320×240", lines[1][4], "sub/beach copy.jpg"]
    assert ["2", "copies", "inside"] in [line[:3] for line in lines]
    assert "Nothing was changed" in listed.stderr

    spare = run("dedup", album, "--paths").stdout.splitlines()
    assert str(album / "sub/beach copy.jpg") in spare
    assert len(spare) == 3
    assert not {str(album / "a.jpg"), str(album / "b.jpg")} & {*spare}
    zeros = run("dedup", "-0", "--library", album).stdout
    assert zeros.split("\0") == [*spare, ""]
    assert len(run("dedup", album, "-0", "--kind", "bursts").stdout.split("\0")) == 2
    assert look(album) == before


def test_the_command_says_when_there_is_nothing_and_what_is_wrong(tmp_path: Path) -> None:
    for i, scene in enumerate(SCENES):
        scene.save(tmp_path / f"{i}.png")
    index(tmp_path, model=ColourEncoder())
    nothing = run("dedup", tmp_path, code=3)
    assert nothing.stdout == ""
    assert "Nothing found among 5 pictures" in nothing.stderr
    assert json.loads(run("dedup", tmp_path, "--json", code=3).stdout)["groups"] == []
    assert "'copies'" in run("dedup", tmp_path, "--kind", "twins", code=2).stderr
    run("dedup", tmp_path, "--library", tmp_path, code=2)
    run("dedup", tmp_path, "--json", "--paths", code=2)


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
def test_names_are_handed_on_as_they_are(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/new\nline \xff.png"
    SCENES[0].save(tmp_path / "first.png")
    Path(os.fsdecode(odd)).write_bytes((tmp_path / "first.png").read_bytes())
    index(tmp_path, model=ColourEncoder())
    done = subprocess.run([MMSEARCH, "dedup", str(tmp_path), "-0"], capture_output=True, check=True)
    assert done.stdout == odd + b"\0"
