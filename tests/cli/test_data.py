"""`vaegen data inspect` and `vaegen data verify`, as a user calls them."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.data.samples import prepare_job, write_images
from vaegen_ray.cli.main import app
from vaegen_ray.data.prepare import prepare
from vaegen_ray.errors import DataError


def vaegen(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["data", *map(str, arguments)])


@pytest.fixture
def made(tmp_path: Path) -> Path:
    for label in ("cat", "dog [sic]"):
        write_images(tmp_path / "images" / label, 20)
    source = {"kind": "folder", "path": str(tmp_path / "images"), "label_from_folder": True}
    prepare(prepare_job(source, tmp_path / "made", rows_per_shard=8, licence="CC0", held_out_fraction=0.0))
    return tmp_path / "made"


def test_inspect_shows_what_the_dataset_is(made: Path) -> None:
    result = vaegen("inspect", made)
    assert result.exit_code == 0
    for words in (
        "40 in 5 shard(s), 5 row group(s)",
        "16 x 16 x 3, webp",
        "largest eigenvalue",
        "2 of type string: cat (20), dog [sic] (20)",
        "CC0",
        f"folder {made.parent / 'images'}",
    ):
        assert words in result.output


def test_inspect_writes_a_contact_sheet_of_images_from_the_whole_split(made: Path, tmp_path: Path) -> None:
    result = vaegen("inspect", made, "--images", tmp_path / "sheet.png")
    assert result.exit_code == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 17 - 1, 5 * 17 - 1)  # All forty, eight a row, a pixel between.
    with (
        Image.open(tmp_path / "images" / "cat" / "image-0009.png") as image,
        Image.open(tmp_path / "sheet.png") as sheet,
    ):
        assert sheet.crop((17, 17, 33, 33)).tobytes() == image.tobytes()


def test_names_with_brackets_are_shown_as_they_are(made: Path, tmp_path: Path) -> None:
    place = tmp_path / "x[" / "red]"
    place.parent.mkdir()
    made.rename(place)
    assert f"{place}: whole" in vaegen("verify", place).output
    shown = vaegen("inspect", place)
    assert shown.exit_code == 0
    assert "x[/red]" in shown.output


def test_verify_ends_in_one_line_or_names_what_is_wrong(made: Path) -> None:
    result = vaegen("verify", made)
    assert result.exit_code == 0
    assert f"{made}: whole; 5 shards have their checksums, 40 images decode" in result.output
    (made / "train-00003.parquet").unlink()
    result = vaegen("verify", made)
    assert isinstance(result.exception, DataError)  # `main` makes exit code 2 of it.
    assert str(result.exception) == f"{made}: 1 problem(s); restore the files that are named, or prepare again"
    assert "train-00003.parquet: must be there, dataset.json names it, got nothing" in result.output


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_what_is_no_dataset_is_refused_in_a_sentence(verb: str, tmp_path: Path) -> None:
    for name, text in (("empty", None), ("damaged", "{"), ("old", '{"schema_version": 1}')):
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "dataset.json").write_text(text)
    (tmp_path / "images.parquet").touch()
    expected = {
        "nowhere": "must hold a dataset.json, got nothing there",
        "empty": "must hold a dataset.json, got a folder without one",
        "damaged": "must be JSON with a schema_version",
        "images.parquet": "must hold a dataset.json, got a Parquet file; make a dataset with `vaegen prepare`",
        "old": "schema_version must be 2 for this version of vaegen_ray, got 1; run `vaegen prepare` again",
    }
    for name, sentence in expected.items():
        error = vaegen(verb, tmp_path / name).exception
        assert isinstance(error, DataError)
        assert sentence in str(error)


def test_inspect_of_a_dataset_with_a_damaged_shard_points_to_verify(made: Path) -> None:
    (made / "train-00000.parquet").write_bytes(b"damaged")
    error = vaegen("inspect", made).exception
    assert isinstance(error, DataError)
    assert "`vaegen data verify` tells the rest" in str(error)
