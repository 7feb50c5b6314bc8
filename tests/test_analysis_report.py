"""Claims about the report of a comparison."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from fake_runs import demo_like, fake_comparison

from limbeck.analysis.report import _definitions, write_report
from limbeck.errors import UserError

VOID = {"meta", "img", "br"}
SEEDS = [(0.90, 0.89), (0.92, 0.90)]


class Page(HTMLParser):
    """Collects what a page refers to, and its text; fails on tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in {"src", "href", "srcset"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = demo_like(tmp_path_factory.mktemp("comparison"), seeds=3)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_report_refers_to_nothing_outside_itself(folder, page):
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert len(page.references) == 7
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not re.search(r"https?://|@import|url\(|<script|<link", text)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_every_column_is_seen_in_a_window_of_1000_pixels(folder, tmp_path):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "tail, %" in page
    measure = (
        "<script>const box = document.querySelector('.wide');"
        "document.title = `${window.innerWidth} ${box.scrollWidth - box.clientWidth}`</script></body>"
    )
    (tmp_path / "page.html").write_text(page.replace("</body>", measure), encoding="utf-8")
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    words = [*browser, "--window-size=1000,800", "--dump-dom", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert re.search("<title>(.*?)</title>", done.stdout).group(1) == "1000 0"


def test_pictures_in_the_page_are_those_beside_it(folder, page):
    inline = {base64.b64decode(reference.split(",")[1]) for reference in page.references}
    assert inline == {path.read_bytes() for path in folder.glob("*.png")}


def test_report_says_settings_seeds_environment_and_how_to_read_it(page):
    text = " ".join(page.words)
    for said in (
        "A fake comparison",
        "seeds 0, 1, 2",
        "gkl (chosen)",
        "gkl (weight 2, temperature 4, scale_by_t2 yes)",
        "no difference seen",
        "A/A control",
        "How to read this",
        "torch 2.13.0",
        "3.11.9",
    ):
        assert said in text


def test_incomplete_comparison_is_marked_in_the_report(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS], "gkl": [SEEDS]})
    (folder / "gkl/setting0/seed1/results.json").unlink()
    text = write_report(folder).read_text(encoding="utf-8")
    assert re.search(r'<p class="warning">INCOMPLETE: 1 run not finished', text)


def test_an_environment_without_accelerators_says_none():
    assert list(_definitions({"accelerators": []})) == ["<dt>accelerators</dt>", "<dd>none</dd>"]


def test_names_are_escaped(tmp_path):
    folder = fake_comparison(tmp_path, {"<b>&kl": [SEEDS]}, baseline="<b>&kl")
    content = json.loads((folder / "comparison.json").read_text())
    (folder / "comparison.json").write_text(json.dumps(content | {"title": "a < b"}))
    text = write_report(folder).read_text(encoding="utf-8")
    assert "a &lt; b" in text
    assert "<b>" not in text


def test_missing_environment_is_named(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS]})
    (folder / "kl/setting0/seed0/environment.json").unlink()
    with pytest.raises(UserError, match=r"seed0/environment\.json is missing"):
        write_report(folder)


def test_report_that_cannot_be_written_is_named(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS]})
    (folder / "report.html").mkdir()
    with pytest.raises(UserError, match=r"report\.html cannot be written"):
        write_report(folder)
