"""`limbeck data` against a server of our own that cuts, forgets, changes and lies as real ones do."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from archive_server import ARCHIVE, Server
from cifar_archives import write_cifar

from limbeck import data_commands, data_files, download
from limbeck.cli import main
from limbeck.config import DataOptions
from limbeck.data import build_data
from limbeck.data_files import PUBLISHED
from limbeck.download import CHUNK, Wanted
from limbeck.errors import UserError


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A small CIFAR-100, of a few chunks."""
    folder = tmp_path_factory.mktemp("published")
    write_cifar(folder, "cifar100", train=300, test=100)
    content = (folder / ARCHIVE).read_bytes()
    assert len(content) > 3 * CHUNK
    return content


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(download, "WAITS_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("LIMBECK_DATA", raising=False)


@pytest.fixture
def server(archive, monkeypatch):
    """The authors' server, which publishes the small archive."""
    checksums = {kind: hashlib.new(kind, archive).hexdigest() for kind in ("md5", "sha256")}
    published = data_files.PUBLISHED["cifar100"]._replace(size=len(archive), checksums=checksums)
    monkeypatch.setitem(data_files.PUBLISHED, "cifar100", published)
    with Server(archive) as server:
        monkeypatch.setattr(data_files, "AUTHORS_PAGE", server.url.removesuffix(ARCHIVE))
        yield server


@pytest.fixture
def fetch(capsys, tmp_path):
    """Run `limbeck data fetch cifar100` into an empty folder; return exit code, output, lines of error."""

    def run(*words):
        code = main(["data", "fetch", "cifar100", "--folder", str(tmp_path), *words])
        output, error = capsys.readouterr()
        return code, output, error

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def begin(server, fetch, *, kept=CHUNK):
    """Leave the first `kept` bytes of a download in the folder."""
    server.cuts = [kept, 0, 0, 0]
    assert fetch()[0] == 2
    server.ranges.clear()


# --- what works ---


def test_a_fetched_archive_is_whole_and_can_be_trained_on(server, fetch, tmp_path):
    code, output, error = fetch()
    assert code == 0
    assert output == (
        f"CIFAR-100 is there, checksums right: {tmp_path / ARCHIVE}\n"
        f"Train with: --set data.name=cifar100 --set data.folder={tmp_path}\n"
    )
    assert error.startswith(f"CIFAR-100, {len(server.content) / 1e6:.1f} MB from {server.url}\n")
    assert names(tmp_path) == [ARCHIVE]
    assert (tmp_path / ARCHIVE).read_bytes() == server.content
    assert len(build_data(DataOptions(name="cifar100", folder=str(tmp_path), validation=0)).train) == 300


def test_a_second_call_says_that_it_is_there_and_asks_nobody(server, fetch, tmp_path):
    fetch()
    server.ranges.clear()
    assert fetch() == (0, f"CIFAR-100 is there: {tmp_path / ARCHIVE}\n", "")
    assert server.ranges == []


@pytest.mark.parametrize("form", ["folder", "binary", "binary-tar"])
def test_any_form_that_can_be_read_is_there(server, fetch, tmp_path, form):
    write_cifar(tmp_path, "cifar100", form=form)
    code, output, _ = fetch()
    assert (code, server.ranges) == (0, [])
    assert output.startswith(f"CIFAR-100 is there: {tmp_path}")


def test_the_folder_is_made_and_without_one_it_is_the_variables(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "deep" / "data"))
    assert main(["data", "fetch", "cifar100"]) == 0
    assert (tmp_path / "deep" / "data" / ARCHIVE).is_file()
    assert capsys.readouterr().out.endswith("Train with: --set data.name=cifar100\n")


def test_a_broken_connection_is_taken_up_where_it_broke(server, fetch, tmp_path):
    server.cuts = [CHUNK + 10, CHUNK]
    code, _, error = fetch()
    assert code == 0
    assert server.ranges == [None, f"bytes={CHUNK + 10}-", f"bytes={2 * CHUNK + 10}-"]
    assert error.count("trying again") == 2
    assert (tmp_path / ARCHIVE).read_bytes() == server.content


def test_a_later_call_goes_on_where_an_earlier_one_stopped(server, fetch, tmp_path):
    begin(server, fetch)
    assert names(tmp_path) == [f"{ARCHIVE}.part", f"{ARCHIVE}.part.json"]
    assert fetch()[0] == 0
    assert server.ranges == [f"bytes={CHUNK}-"]
    assert names(tmp_path) == [ARCHIVE]
    assert (tmp_path / ARCHIVE).read_bytes() == server.content


def test_another_server_goes_on_with_what_the_first_one_sent(server, fetch, archive, tmp_path):
    begin(server, fetch)
    with Server(archive) as mirror:
        mirror.headers = {"ETag": '"of the mirror"'}
        assert fetch("--url", mirror.url)[0] == 0
    assert (mirror.ranges, mirror.conditions, server.ranges) == ([f"bytes={CHUNK}-"], [None], [])


def test_a_whole_part_needs_no_server(server, fetch, tmp_path):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(server.content)
    assert fetch()[0] == 0
    assert server.ranges == []


def test_a_part_that_is_longer_than_the_file_is_begun_again(server, fetch, tmp_path):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(server.content + b"more")
    assert fetch()[0] == 0
    assert server.ranges == [None]


def test_a_server_without_ranges_sends_all_again(server, fetch, tmp_path):
    begin(server, fetch)
    server.resumes = False
    code, _, error = fetch()
    assert (code, server.ranges) == (0, [f"bytes={CHUNK}-"])
    assert "the server does not go on at" in error
    assert (tmp_path / ARCHIVE).read_bytes() == server.content


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.parametrize("kind", ["ETag", "Last-Modified"])
def test_a_file_that_changed_in_between_is_begun_again(server, fetch, archive, tmp_path, heeds_if_range, kind):
    server.heeds_if_range = heeds_if_range
    server.headers = {kind: "Sat, 21 Nov 2026 10:00:00 GMT"}
    server.content = bytes(len(archive))
    begin(server, fetch)
    server.content, server.headers = archive, {kind: "Sat, 21 Nov 2026 11:00:00 GMT"}
    assert fetch()[0] == 0
    assert (tmp_path / ARCHIVE).read_bytes() == archive
    assert server.ranges == [f"bytes={CHUNK}-"] + ([] if heeds_if_range else [None])


def test_a_weak_tag_is_no_condition_but_its_change_is_seen(server, fetch):
    server.headers = {"ETag": 'W/"one"'}
    begin(server, fetch)
    server.answers = [404]
    fetch()
    assert server.conditions[-1] is None
    server.headers = {"ETag": 'W/"two"'}
    assert fetch()[0] == 0
    assert server.ranges[1:] == [f"bytes={CHUNK}-", None]


def test_the_same_weak_tag_goes_on(server, fetch):
    server.headers = {"ETag": 'W/"one"'}
    begin(server, fetch)
    assert fetch()[0] == 0
    assert server.ranges == [f"bytes={CHUNK}-"]


def test_a_server_that_tells_no_length_is_read_to_the_end(server, fetch, tmp_path):
    server.tells_length = False
    assert fetch()[0] == 0
    assert (tmp_path / ARCHIVE).read_bytes() == server.content


def test_a_busy_server_is_asked_again(server, fetch):
    server.answers = [503, 429, 500, 200]
    assert fetch()[0] == 0
    assert len(server.ranges) == 4


def test_attempts_that_bring_something_new_are_not_counted(server, fetch):
    server.cuts = [CHUNK // 2] * 6
    assert fetch()[0] == 0
    assert len(server.ranges) == 7


def test_without_a_terminal_there_is_a_line_for_each_tenth(server, fetch, monkeypatch):
    monkeypatch.setattr(download, "CHUNK", len(server.content) // 50)
    lines = fetch()[2].splitlines()[1:]
    assert len(lines) == 10
    assert all(re.fullmatch(r"\d\.\d MB of \d\.\d MB, [\d.]+ MB/s", line) for line in lines)


def test_a_terminal_has_a_bar_and_the_speed_leaves_out_what_was_there(monkeypatch):
    told = []
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setattr("rich.progress.Progress.reset", lambda _, task, *, completed: told.append(("from", completed)))
    monkeypatch.setattr("rich.progress.Progress.update", lambda _, task, *, completed: told.append(("to", completed)))
    with data_commands._told("CIFAR-100", 30) as progress:
        for done in (10, 20, 30):
            progress.at(done)
    assert told == [("from", 10), ("to", 20), ("to", 30)]


# --- what goes wrong ---


def failure(run):
    """Return the one line, less the notes before it."""
    code, output, error = run
    assert (code, output) == (2, "")
    return error.splitlines()[-1]


def test_a_wrong_checksum_deletes_the_download_and_says_so(server, fetch, archive, tmp_path):
    server.content = archive[:-1] + bytes([archive[-1] ^ 1])
    line = failure(fetch())
    expected, got = (hashlib.md5(content).hexdigest() for content in (archive, server.content))
    assert line == (
        f"limbeck: {ARCHIVE} from {server.url}: md5 expected {expected}, got {got}; it is deleted: run the command "
        f"again, or name another server with --url"
    )
    assert names(tmp_path) == []


def test_each_checksum_is_looked_at(server, fetch, monkeypatch, archive):
    right = data_files.PUBLISHED["cifar100"]
    for kind in right.checksums:
        checksums = right.checksums | {kind: "0" * len(right.checksums[kind])}
        monkeypatch.setitem(data_files.PUBLISHED, "cifar100", right._replace(checksums=checksums))
        assert f"{kind} expected 000" in failure(fetch())


def test_a_file_of_another_size_is_refused_before_it_is_downloaded(server, fetch, tmp_path):
    server.content = b"<html>Please log in to this network</html>"
    line = failure(fetch())
    assert f"expected to be the published file of {data_files.PUBLISHED['cifar100'].size:,} bytes, got 42 bytes" in line
    assert line.endswith(f"name another server with --url, or put {ARCHIVE} into {tmp_path} yourself")
    assert names(tmp_path) == []


def test_a_file_of_another_size_does_not_cost_what_was_kept(server, fetch, archive, tmp_path):
    begin(server, fetch)
    for content in (archive[:-5], archive[: CHUNK - 5]):
        server.content = content
        assert "expected to be the published file" in failure(fetch())
        assert (tmp_path / f"{ARCHIVE}.part").stat().st_size == CHUNK


def test_a_file_that_does_not_end_is_refused(server, fetch, archive, tmp_path):
    server.tells_length = False
    server.content = archive + bytes(CHUNK)
    assert "bytes, got more than" in failure(fetch())
    assert names(tmp_path) == []


def test_no_more_is_written_than_shows_that_a_file_is_another(server, archive, tmp_path):
    server.tells_length = False
    server.content = archive + bytes(20 * CHUNK)
    seen = []
    progress = SimpleNamespace(at=seen.append, note=seen.append)
    with pytest.raises(UserError, match="got more than"):
        download.download(Wanted(server.url, tmp_path / ARCHIVE, len(archive), {}), progress)
    assert len(archive) < max(seen) <= len(archive) + CHUNK


def test_a_missing_file_names_the_address_and_the_way_out(server, fetch, tmp_path):
    server.answers = [404]
    assert failure(fetch()) == (
        f"limbeck: {server.url.split('/')[2]} answers 404 Not Found to {server.url}; name another server with --url, "
        f"or put {ARCHIVE} into {tmp_path} yourself"
    )
    assert len(server.ranges) == 1
    assert names(tmp_path) == []


def test_no_network_is_told_after_some_attempts(server, fetch, tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        code, output, error = fetch("--url", f"http://{address}/{ARCHIVE}")
    lines = error.splitlines()[1:]
    assert (code, output) == (2, "")
    assert lines[0] == f"{address} cannot be reached (connection refused); trying again in 0 s"
    assert len(lines) == 4
    assert lines[-1].startswith(f"limbeck: {address} cannot be reached (connection refused), after 4 attempts; name ")
    assert names(tmp_path) == []


def test_a_server_that_always_breaks_off_leaves_what_it_sent(server, fetch, tmp_path):
    server.cuts = [CHUNK, 0, 0, 0]
    line = failure(fetch())
    assert f"{CHUNK / 1e6:.1f} MB are kept, the same command goes on; or name another server" in line
    assert (tmp_path / f"{ARCHIVE}.part").read_bytes() == server.content[:CHUNK]


def test_a_server_that_says_nothing_is_left_after_a_while(server, fetch, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.05)
    server.cuts, server.hangs = [CHUNK, 0, 0, 0], True
    line = failure(fetch())
    assert "timed out" in line
    assert "are kept" in line


def test_a_full_disk_is_told_before_the_download(server, fetch, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000))
    assert failure(fetch()) == (
        f"limbeck: {tmp_path} expected room for {len(server.content) / 1e6:.1f} MB, got 0.0 MB; choose another --folder"
    )
    assert server.ranges == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_disk_that_fills_up_is_told(server, tmp_path):
    (tmp_path / f"{ARCHIVE}.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot be written \(no space left on device\); mend this and run the"):
        download.download(Wanted(server.url, tmp_path / ARCHIVE, len(server.content), {}), Silent())


def test_a_file_in_the_place_of_the_folder_is_told(server, capsys, tmp_path):
    (tmp_path / "data").write_text("not a folder")
    for folder in (tmp_path / "data", tmp_path / "data" / "deeper"):
        assert main(["data", "fetch", "cifar100", "--folder", str(folder)]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line == f"limbeck: {folder} lies in or is a file, not a folder; choose another --folder"


def test_an_archive_that_is_there_but_damaged_is_told(server, fetch, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(server.content[:-1])
    line = failure(fetch())
    assert f"{tmp_path / ARCHIVE} is there, but md5 expected" in line
    assert line.endswith(f"delete it and run: limbeck data fetch cifar100 --folder {tmp_path}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cifar10O"], "unknown data set `cifar10O`; did you mean `cifar10"),
        (["svhn"], "unknown data set `svhn`; expected one of `cifar10`, `cifar100`"),
        (["imagenet"], "`imagenet` is not downloaded from here: get it from image-net.org, on request, so that"),
        (["digits"], "`digits` needs no download, it comes with scikit-learn: pip install"),
        (["cifar100", "--url", "file:///etc/passwd"], "--url expected http:// or https://, got file:///etc/passwd"),
    ],
)
def test_a_mistake_is_one_line(words, expected, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "fetch", *words]) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert names(tmp_path) == []


class Silent:
    def at(self, done):
        pass

    def note(self, text):
        pass


def test_two_downloads_of_one_file_at_a_time_are_one_too_many(server, fetch, tmp_path):
    class SecondCall(Silent):
        line = ""

        def at(self, done):
            if done:
                self.line = self.line or failure(fetch())

    second, wanted = SecondCall(), data_files.PUBLISHED["cifar100"]
    download.download(Wanted(server.url, tmp_path / ARCHIVE, wanted.size, wanted.checksums), second)
    assert second.line == f"limbeck: another process is downloading {tmp_path / ARCHIVE}; wait for it"
    assert (tmp_path / ARCHIVE).read_bytes() == server.content


def test_ctrl_c_keeps_what_came_and_says_how_to_go_on(server, tmp_path):
    server.cuts, server.hangs = [CHUNK], True
    words = ["data", "fetch", "cifar100", "--folder", str(tmp_path)]
    code = (
        "import sys\nfrom limbeck import data_files\nfrom limbeck.cli import main\n"
        f"data_files.AUTHORS_PAGE = {data_files.AUTHORS_PAGE!r}\n"
        f"published = data_files.PUBLISHED['cifar100']._replace(size={len(server.content)})\n"
        f"data_files.PUBLISHED['cifar100'] = published\nsys.exit(main({words!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    part = tmp_path / f"{ARCHIVE}.part"
    while child.poll() is None and not (part.is_file() and part.stat().st_size):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=60)
    assert error.splitlines()[-1] == f"limbeck: interrupted; {part} is kept, and the same command goes on"
    assert child.returncode == 75
    assert part.read_bytes() == server.content[: part.stat().st_size]
    assert json.loads(part.with_name(f"{part.name}.json").read_text())["ETag"] == '"one"'


# --- the list ---


def test_the_list_says_of_each_data_set_what_it_costs_and_whether_it_is_here(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    write_cifar(tmp_path, "cifar10", form="binary")
    assert main(["data", "list", "--folder", str(tmp_path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert lines["cifar10"].rstrip().endswith("170.5 MB               yes")
    assert lines["cifar100"].rstrip().endswith("169.0 MB               no")
    assert lines["digits"].rstrip().endswith("none, in scikit-learn  yes")
    assert f"Data folder: {tmp_path}" in lines["Data"]


def test_the_list_tells_a_part_and_an_archive_of_another_size_from_the_published_one(tmp_path):
    archive = tmp_path / PUBLISHED["cifar100"].python.archive
    part = archive.with_name(f"{archive.name}.part")
    part.write_bytes(b"x")
    assert data_commands._presence("cifar100", tmp_path) == "a part"
    with part.rename(archive).open("r+b") as file:
        assert data_commands._presence("cifar100", tmp_path) == "other size"
        file.truncate(PUBLISHED["cifar100"].size)  # no byte of it is written
    assert data_commands._presence("cifar100", tmp_path) == "yes"


def test_data_alone_lists(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs = []
    for words in (["data"], ["data", "list"]):
        assert main(words) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != ""


def test_every_data_set_of_the_options_is_listed():
    options = set(get_args(DataOptions.model_fields["name"].annotation))
    assert set(data_commands.FACTS) == options - {"custom"}


def test_listing_and_fetching_need_no_torch(tmp_path):
    code = (
        "import sys\nfrom limbeck.cli import main\n"
        "for words in (['data'], ['data', 'fetch', 'digits'], ['data', 'fetch', '--help']):\n    main(words)\n"
        "assert not {'torch', 'numpy', 'sklearn'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
