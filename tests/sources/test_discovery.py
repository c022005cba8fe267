import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from morpheus.errors import RecordError, UsageError
from morpheus.sources.cloudtrail import CLOUDTRAIL_FORMAT
from morpheus.sources.compression import detect_file_type, read_blocks, read_bytes, to_utf8
from morpheus.sources.discovery import FileDiscovery


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def found(folder: Path, pattern: str, **given: object) -> list[str]:
    paths = FileDiscovery(str(folder / pattern), **given).require().paths  # type: ignore[arg-type] # options of several types
    return [Path(str(path)).relative_to(folder).as_posix() for path in paths]


def test_files_are_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b.csv", "a.csv", "c.csv")
    assert found(tmp_path, "*.csv") == ["a.csv", "b.csv", "c.csv"]


def test_glob_matches_in_subfolders_by_default(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv", "may/b.csv", "may/1/c.csv")
    assert found(tmp_path, "*.csv") == ["a.csv", "may/1/c.csv", "may/b.csv"]
    assert found(tmp_path, "*.csv", recursive=False) == ["a.csv"]


@pytest.mark.parametrize("pattern", ["AWSLogs", "AWSLogs/", "AWSLogs/*.json.gz", "AWSLogs/**/*.gz"])
def test_folder_is_read_without_digests_and_insights(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "AWSLogs/1/CloudTrail/us/a.json.gz", "AWSLogs/1/CloudTrail-Digest/us/d.json.gz")
    files = FileDiscovery(str(tmp_path / pattern), skip_dirs=("CloudTrail-Digest",)).require()
    assert [path.name for path in files.paths] == ["a.json.gz"]
    assert files.skipped_files == 1


def test_existing_file_with_wildcards_in_its_name_is_found(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].csv", "a1.csv")
    assert found(tmp_path, "a[1].csv") == ["a[1].csv"]


def test_glob_without_a_folder_is_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.csv", "sub/b.csv")
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in FileDiscovery("*.csv").require().paths] == ["a.csv", "sub/b.csv"]


def test_hidden_unfinished_and_other_files_are_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv", ".b.csv", ".git/c.csv", "d.csv.part", "notes.txt")
    assert found(tmp_path, "*") == ["a.csv"]


def test_files_with_other_suffixes_are_named_and_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.json", "b.json.bz2", "c.log", "d", "e.xml", "f.json.1")
    [not_read] = FileDiscovery(str(tmp_path)).require().not_read
    assert str(not_read) == (
        f"5 files with another suffix: {tmp_path}/b.json.bz2, {tmp_path}/c.log, {tmp_path}/d, "
        f"{tmp_path}/e.xml, 1 more"
    )


def test_a_rotated_file_is_read_if_the_pattern_names_it(tmp_path: Path) -> None:
    touch(tmp_path, "a.json", "a.json.1", "a.json.2.gz")
    assert found(tmp_path, "*") == ["a.json"]
    assert found(tmp_path, "a.json*") == ["a.json", "a.json.1", "a.json.2.gz"]
    assert found(tmp_path, "a.json.1") == ["a.json.1"]


def test_links_to_a_folder_above_are_not_followed_but_named(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.json", "in/sub/b.json", "other/c.json")
    (tmp_path / "in/self").symlink_to(".")
    (tmp_path / "in/sub/up").symlink_to("../..")
    (tmp_path / "in/other").symlink_to("../other")
    (tmp_path / "in/nothing.json").symlink_to("/nowhere")
    (tmp_path / "in/itself.json").symlink_to("itself.json")
    files = FileDiscovery(str(tmp_path / "in")).require()
    names = [Path(str(path)).relative_to(tmp_path).as_posix() for path in files.paths]
    assert names == ["in/a.json", "in/other/c.json", "in/sub/b.json"]
    assert [str(each) for each in files.not_read] == [
        f"2 links to a folder above it: {tmp_path}/in/self, {tmp_path}/in/sub/up",
        f"2 links to nothing: {tmp_path}/in/itself.json, {tmp_path}/in/nothing.json",
    ]


def test_folders_without_read_access_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.json", "secret/b.json")
    scan = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "secret":
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr("morpheus.sources.discovery.os.scandir", refuse)
    files = FileDiscovery(str(tmp_path)).require()
    assert [str(each) for each in files.not_read] == [
        f"1 folder without read access: {tmp_path}/secret"
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("111122223333_CloudTrail-Digest_eu-west-1_x.json.gz", "CloudTrail digest file"),
        ("111122223333_CloudTrail-Insight_eu-west-1_x.json", "CloudTrail Insights file"),
        ("AWSLogs/111122223333/Config/eu/x.json.gz", "AWS Config file"),
        ("AWSLogs/o-a1/111122223333/GuardDuty/eu/x.jsonl.gz", "GuardDuty file"),
        ("AWSLogs/111122223333/vpcflowlogs/eu/x.log.gz", "VPC flow log file"),
        ("2026-10-01-08-00-00-0123456789ABCDEF", "S3 access log file"),
        ("_SUCCESS", "marker file"),
        ("b.json.part", "unfinished file"),
    ],
)
def test_files_of_other_kinds_are_known_by_name_and_counted(
    tmp_path: Path, name: str, kind: str
) -> None:
    touch(tmp_path, "AWSLogs/111122223333/CloudTrail/eu/111122223333_CloudTrail_eu_x.json", name)
    other_files = CLOUDTRAIL_FORMAT.other_files
    files = FileDiscovery(str(tmp_path), other_files=other_files).require()
    assert (len(files.paths), dict(files.kinds), files.skipped_files) == (1, {kind: 1}, 1)
    with pytest.raises(UsageError, match=rf"no log of this kind: {kind} \(1\)"):
        FileDiscovery(str(tmp_path / name), other_files=other_files).require()


def test_a_folder_named_like_another_service_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "Config/a.json", "GuardDuty/b.json")
    files = FileDiscovery(str(tmp_path), other_files=CLOUDTRAIL_FORMAT.other_files).require()
    assert len(files.paths) == 2


def test_file_type_accepts_any_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "events.log", "events.log.part")
    files = FileDiscovery(str(tmp_path / "events.*"), file_type="json")
    assert [files.detect_type(path) for path in files.require().paths] == ["json"]


@pytest.mark.parametrize(("most", "left"), [(2, 2), (None, 3), (-1, 3), (9, 3)])
def test_max_files_limits_the_sorted_files(tmp_path: Path, most: int | None, left: int) -> None:
    touch(tmp_path, "c.csv", "a.csv", "b.csv")
    assert found(tmp_path, "*.csv", max_files=most) == ["a.csv", "b.csv", "c.csv"][:left]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nowhere/*.csv", "There is no folder"),
        ("*.json", r"has files ending in \.csv, \.txt"),
        ("*.txt", r"Matching files have the suffixes \.txt.*`--file_type json`"),
        ("empty/*", "has no files"),
        ("empty", "The folder `.*/empty` has no files"),
        ("nowhere", r"has files ending in \.csv, \.txt"),
        ("e*", r"Matching files have the suffixes no suffix, \.txt; log files have"),
    ],
)
def test_no_match_reports_the_existing_files(tmp_path: Path, pattern: str, message: str) -> None:
    touch(tmp_path, "a.csv", "notes.txt", "extra.txt", "extra")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=f"--input_glob: no log file matches .*{message}"):
        FileDiscovery(str(tmp_path / pattern)).require()


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_compression_is_detected_by_content(tmp_path: Path, name: str) -> None:
    for data in (b"[1]", gzip.compress(b"[1]"), zstandard.compress(b"[1]")):
        (tmp_path / name).write_bytes(data)
        assert read_bytes(tmp_path / name) == b"[1]"


def test_several_zstd_frames_are_all_read(tmp_path: Path) -> None:
    (tmp_path / "a.zst").write_bytes(zstandard.compress(b"one") + zstandard.compress(b"two"))
    assert read_bytes(tmp_path / "a.zst") == b"onetwo"


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("cut", [1, 9])
def test_truncated_compression_is_reported_with_the_file(
    tmp_path: Path, pack: object, cut: int
) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(pack(bytes(range(256)) * 99)[:-cut])  # type: ignore[operator] # either packer
    with pytest.raises(
        RecordError, match=r"a\.json\.gz: .*truncated or damaged .*download it again"
    ):
        read_bytes(path)


def test_damaged_gzip_is_reported_with_the_file(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(b"abc" * 999))
    data[12:14] = b"\xff\xff"
    (tmp_path / "a.gz").write_bytes(data)
    with pytest.raises(RecordError, match="truncated or damaged"):
        read_bytes(tmp_path / "a.gz")


def test_empty_and_deleted_files_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.gz").touch()
    with pytest.raises(RecordError, match=r"a\.gz: the compressed file is empty"):
        read_bytes(tmp_path / "a.gz")
    with pytest.raises(RecordError, match=r"b\.gz: the file was deleted during the run"):
        read_bytes(tmp_path / "b.gz")


def test_file_without_read_access_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read \(.*\)\. Get read access"):
        read_bytes(tmp_path)


def test_utf16_of_powershell_becomes_utf8() -> None:
    assert to_utf8("[1]".encode("utf-16")) == to_utf8("[1]".encode("utf-8-sig")) == b"[1]"


def test_suffix_gives_the_file_type() -> None:
    names = ["a.CSV", "a.jsonl.zst", "a.parquet", "a.gz", "gz", "a.txt.gz"]
    assert [detect_file_type(Path(name)) for name in names] == [
        "csv",
        "json",
        "parquet",
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_blocks_give_the_whole_file(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    text = bytes(range(256)) * 400
    path = tmp_path / "a.json"
    path.write_bytes(pack(text) + pack(text))
    blocks = list(read_blocks(path, 1000))
    assert b"".join(blocks) == text * 2 == read_bytes(path)
    assert len(blocks) > 1


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_truncated_file_in_blocks_is_reported(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(pack(os.urandom(9000))[:-300])
    with pytest.raises(RecordError, match=r"a\.json: the compressed file is truncated or damaged"):
        list(read_blocks(path, 1000))


def test_missing_file_in_blocks_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="was deleted during the run"):
        list(read_blocks(tmp_path / "a.json"))
