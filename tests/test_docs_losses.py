"""The page that says which loss to use knows every loss, and names options and words that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from limbeck.config import TERMS

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "which-loss.md").read_text("utf-8")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*$", text, re.M)]
    return found[2:]  # less the titles and the rule


def test_every_loss_has_a_row_that_says_what_its_weight_means():
    table = rows(section("What a weight means"))
    assert [row[0] for row in table] == [f"`{name}`" for name in TERMS]
    assert all(row[1] and row[3] for row in table)


def test_every_loss_is_named_where_one_chooses():
    named = set(re.findall(r"`(\w+)`", section("By what you have")))
    assert set(TERMS) - named == {"cross_entropy", "feature_distribution"}  # the labels; an ablation


def test_the_losses_that_refuse_soft_labels_are_those_that_the_page_names():
    row = next(row for row in rows(section("By what you have")) if row[0].startswith("soft labels"))
    need_hard = {name for name, term in TERMS.items() if term.hard_labels}
    assert set(re.findall(r"`(\w+)`", row[2])) == need_hard
    assert not set(re.findall(r"`(\w+)`", row[1])) & need_hard


@pytest.mark.parametrize(
    "row", rows(section("Where paper and public code disagree")), ids=lambda row: row[0].strip("`")
)
def test_a_disagreement_has_an_option_with_the_default_first(row):
    option, words = re.match(r"`(\w+)`: (.*)", row[3]).groups()
    term = TERMS[row[0].strip("`")]
    schema = term.model_json_schema()["properties"][option]
    named = re.findall(r"`([^`]+)`", words.split(";")[0])
    allowed = [str(word).lower() for word in schema.get("enum", [True, False])]
    assert sorted(named) == sorted(allowed)
    assert named[0] == str(schema["default"]).lower()


def test_squared_temperatures_are_as_the_page_says():
    says = {row[0].strip("`"): row[2] for row in rows(section("What a weight means"))}
    for name, term in TERMS.items():
        field = term.model_fields.get("scale_by_t2")
        begins = {None: r"no|$", False: r"`scale_by_t2`, off$", True: r"on\b"}[field and field.default]
        assert re.match(begins, says[name]), name
