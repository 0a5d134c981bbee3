"""Tar shards in WebDataset's naming as a source: what they give, and what they refuse."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.data.samples import image_bytes, prepare_job, random_pixels
from vaegen_ray.config.prepare import PrepareJob
from vaegen_ray.data.chunks import LeftOut
from vaegen_ray.data.conversion import SourceImage
from vaegen_ray.data.prepare import prepare
from vaegen_ray.data.sources import open_source
from vaegen_ray.errors import DataError

IMAGES = [image_bytes(random_pixels(number)) for number in range(8)]


def write_tar(path: Path, *members: tuple[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def tar_job(path: Path, destination: Path | str = "unused", **options: Any) -> PrepareJob:
    source = {"kind": "tar", "path": str(path), **options}
    return prepare_job(source, destination, max_rejected_fraction=0.5)


def images_of(job: PrepareJob) -> tuple[list[SourceImage], LeftOut]:
    source, left_out = open_source(job), LeftOut()
    return [image for chunk in source.plan().chunks for image in source.images(chunk, left_out)], left_out


def labelled(extension: str, label: bytes) -> list[tuple[str, bytes]]:
    return [member for number, image in enumerate(IMAGES[:3]) for member in (
        (f"faces/{number:04}.png", image), (f"faces/{number:04}.{extension}", label)
    )]  # fmt: skip


def test_members_with_dots_in_their_paths_are_taken_and_hidden_ones_are_not(tmp_path: Path) -> None:
    names = ("./a.png", "../b.png", "c/./d.png", ".e.png", "./.f/g.png")
    write_tar(tmp_path / "a.tar", *zip(names, IMAGES, strict=False))
    images, left_out = images_of(tar_job(tmp_path / "a.tar"))
    assert [image.content for image in images] == IMAGES[:3]
    assert left_out.count == 0


def test_label_of_many_brackets_rejects_its_image(tmp_path: Path) -> None:
    label = b"[" * 100_000
    write_tar(
        tmp_path / "a.tar", ("a.png", IMAGES[0]), ("a.json", label), ("b.png", IMAGES[1]), ("b.json", b'{"y": 1}')
    )
    images, _ = images_of(tar_job(tmp_path / "a.tar", label_extension="json", label_key="y"))
    assert [image.label for image in images] == [None, 1]
    assert "label: .json must hold it" in str(images[0].problem)


@pytest.mark.parametrize(("suffix", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz")])
def test_tar_gives_every_sample_named_by_file_and_stem(suffix: str, mode: str, tmp_path: Path) -> None:
    members = [(f"{number:04}.png", image) for number, image in enumerate(IMAGES)]
    write_tar(tmp_path / "shards" / f"b.{suffix}", *members[4:], mode=mode)
    write_tar(tmp_path / "shards" / f"a.{suffix}", *members[:4], mode=mode)
    images, _ = images_of(tar_job(tmp_path / "shards"))
    assert [image.content for image in images] == IMAGES
    assert [image.id for image in images][3:5] == [f"a.{suffix}/0003", f"b.{suffix}/0004"]
    alone, _ = images_of(tar_job(tmp_path / "shards" / f"b.{suffix}"))
    assert [image.id for image in alone] == [image.id for image in images[4:]]


@pytest.mark.parametrize(
    ("options", "content", "label"),
    [
        ({"label_extension": "cls"}, b"7\n", 7),
        ({"label_extension": "txt"}, b"a cat [sic]", "a cat [sic]"),
        ({"label_extension": "json", "label_key": "age"}, json.dumps({"age": 31}).encode(), 31),
        ({"label_extension": "json", "label_key": "name"}, json.dumps({"name": "Ada"}).encode(), "Ada"),
    ],
)
def test_label_comes_from_the_file_that_the_job_names(
    options: dict[str, str], content: bytes, label: int | str, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "a.tar", *labelled(options["label_extension"], content))
    prepare(tar_job(path, tmp_path / "made", **options))
    rows = [row for file in (tmp_path / "made").glob("*-*.parquet") for row in pq.read_table(file).to_pylist()]
    assert sorted(row["id"] for row in rows) == [f"a.tar/faces/000{number}" for number in range(3)]
    assert {row["label"] for row in rows} == {label}


def test_other_members_are_left_out_by_name(tmp_path: Path) -> None:
    members = [("./0.png", IMAGES[0]), ("./0.txt", b"caption"), ("1.txt", b"no image"), ("2.mp4", b"film"), (".x", b"")]
    images, left_out = images_of(tar_job(write_tar(tmp_path / "a.tar", *members)))
    assert [image.id for image in images] == ["a.tar/0"]
    assert left_out.first_names == ["a.tar/1", "a.tar/2.mp4"]


def test_samples_that_cannot_be_used_are_rejected_by_name(tmp_path: Path) -> None:
    members = [*labelled("cls", b"3"), ("6.png", IMAGES[6]), ("6.cls", b"dog"), ("7.png", IMAGES[7]), ("7.jpg", b"")]
    summary = prepare(tar_job(write_tar(tmp_path / "a.tar", *members), tmp_path / "made", label_extension="cls"))
    assert [(rejection.id, rejection.reason[:42]) for rejection in summary.rejections] == [
        ("a.tar/6", "label: .cls must hold it, got b'dog' (Valu"),
        ("a.tar/7", "must be one image of its stem, got 7.png, "),
    ]


@pytest.mark.parametrize("damage", ["cut in a member", "cut between members", "changed header", "no tar at all"])
def test_damaged_tar_is_refused_and_loses_no_images_in_silence(damage: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", *((f"{number}.png", image) for number, image in enumerate(IMAGES)))
    content = bytearray(path.read_bytes())
    second_header = content.index(b"1.png")
    match damage:
        case "cut in a member":
            del content[len(content) // 2 :]
        case "cut between members":
            del content[second_header:]
        case "changed header":
            content[second_header + 20] ^= 1
        case _:
            content[:] = b"this is no tar" * 100
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.tar: must be a whole tar file, got"):
        images_of(tar_job(path))


def test_folder_without_tar_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be, or hold, \*.tar, \*.tar.gz, \*.tgz files, got none; check the path"):
        open_source(tar_job(tmp_path)).plan()


@pytest.mark.parametrize("odd", [b'{"age": "old"}', b'{"age": 9223372036854775808}', b'{"age": null}', b"{}"])
def test_image_whose_label_is_of_another_type_is_rejected_by_name(odd: bytes, tmp_path: Path) -> None:
    members = [("0.png", IMAGES[6]), ("0.json", odd), *labelled("json", b'{"age": 31}')]
    if b"3372" in odd or b"old" in odd:
        members = [*members[2:], *members[:2]]
    job = tar_job(write_tar(tmp_path / "a.tar", *members), tmp_path / "made", label_extension="json", label_key="age")
    summary = prepare(job)
    assert [rejection.id for rejection in summary.rejections] == ["a.tar/0"]
    assert summary.rejections[0].reason.startswith("label: ")
    assert summary.metadata.label == "int64"


def test_member_whose_name_is_not_utf8_is_named_as_it_can_be(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ("caf\udce9.png", IMAGES[0]), ("caf\udce9.mp4", b"film"))
    images, left_out = images_of(tar_job(path))
    assert [image.id for image in images] == ["a.tar/caf\\xe9"]
    assert left_out.first_names == ["a.tar/caf\\xe9.mp4"]


def test_label_files_that_are_not_there_are_refused_at_once(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ("0.png", IMAGES[0]))
    with pytest.raises(DataError, match=r"source.label_extension: .* must hold .cls files with labels, got none"):
        open_source(tar_job(path, label_extension="cls")).plan()


def test_labels_are_looked_for_behind_a_tar_file_without_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "shards" / "a.tar")
    write_tar(tmp_path / "shards" / "b.tar", *labelled("cls", b"3"))
    plan = open_source(tar_job(tmp_path / "shards", label_extension="cls")).plan()
    assert plan.label_type == "int64"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_image_that_is_a_link_in_the_tar_is_rejected_and_not_lost_in_silence(kind: bytes, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ("0.png", IMAGES[0]))
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = kind, "0.png"
        tar.addfile(link)
    images, _ = images_of(tar_job(path))
    assert [(image.id, image.problem) for image in images] == [
        ("a.tar/0", None),
        ("a.tar/1", "must be a file, got a link to '0.png'"),
    ]
