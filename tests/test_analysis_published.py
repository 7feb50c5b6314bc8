"""Claims about a comparison beside a paper's table."""

import io
import json

import pytest
import torch
from fake_runs import CROSS_ENTROPY, KL, fake_comparison, fake_run
from rich.console import Console
from torch.nn import functional as F

from limbeck.analysis.published import cells, compare_with_paper, describe, rich_published, soft_gradient
from limbeck.analysis.report import write_report
from limbeck.cli import main
from limbeck.config import Recipe
from limbeck.config_files import load_recipe, recipe_names
from limbeck.errors import UserError
from limbeck.objectives.build import Facts, build_loss

PUBLISHED = {
    "source": "A table, teacher > student",
    "teacher": 97.0,
    "student": 88.0,
    "rows": {"crd": 92.0, "kl": 91.0, "gkl": 93.0},
}
SEEDS = [(0.90, None), (0.92, None)]
GKL = {"name": "gkl", "prior": "class", "mse_weight": 16.0, "ce_weight": 1.0, "weight_power": 0.05, "temperature": 4.0}


def comparison(folder, rows, *, contenders=None, published=PUBLISHED, protocol="paper"):
    """A comparison whose comparison.json says what the engine writes of the paper."""
    fake_comparison(folder, {name: [SEEDS] for name in rows}, baseline=rows[0])
    path = folder / "comparison.json"
    content = json.loads(path.read_text())
    content |= {"published": published, "protocol": protocol, "contenders": list(contenders or rows)}
    path.write_text(json.dumps(content))
    return folder


def rows_by_name(folder):
    return {row.name: row for row in compare_with_paper(folder).rows}


def test_lines_are_the_teacher_the_student_alone_and_the_papers_rows_in_their_order(tmp_path):
    table = compare_with_paper(comparison(tmp_path, ["kl", "ce", "gkl"]))
    assert [row.name for row in table.rows] == ["teacher", "ce", "crd", "kl", "gkl"]
    assert [row.paper for row in table.rows] == [97.0, 88.0, 92.0, 91.0, 93.0]


def test_difference_is_ours_less_the_papers(tmp_path):
    texts = {line[0]: line for line in cells(compare_with_paper(comparison(tmp_path, ["kl", "ce"])))}
    assert texts["kl"][3:5] == ("91.00", "91.00 ± 1.41")
    assert texts["ce"][6] == "+3.00"
    assert texts["teacher"][4:] == ("97.50", "-", "+0.50")


def test_another_task_is_beside_the_paper_by_its_own_measure(tmp_path):
    folder = comparison(tmp_path, ["kl", "ce"])
    for path in folder.rglob("results.json"):
        results = json.loads(path.read_text()) | {"task": "segment"}
        miou = {"test": {"miou": 0.5, "samples": 20}}
        results["last"] = results["last"] | miou | {"validation": None}
        path.write_text(json.dumps(results | {"optimistic": {"epoch": 1, **miou}, "teachers": [miou]}))
    texts = {line[0]: line for line in cells(compare_with_paper(folder))}
    assert texts["kl"][4:6] == ("50.00 ± 0.00", "50.00 ± 0.00")
    assert texts["teacher"][4] == "50.00"


def test_rival_without_a_loss_and_row_that_was_left_out_are_told_apart(tmp_path):
    rows = rows_by_name(comparison(tmp_path, ["kl"], contenders=["ce", "kl", "gkl"]))
    assert (rows["crd"].remark, rows["gkl"].remark, rows["kl"].remark) == ("no loss here yet", "not trained", "")
    assert rows["student alone"].paper == 88.0


def test_best_on_test_stands_apart_and_needs_every_run(tmp_path):
    comparison(tmp_path, ["kl"])
    assert rows_by_name(tmp_path)["kl"].optimistic is None
    fake_run(tmp_path / "kl/setting0/seed0", top1=0.90, validation=None, optimistic=0.94)
    assert rows_by_name(tmp_path)["kl"].optimistic is None
    fake_run(tmp_path / "kl/setting0/seed1", top1=0.92, validation=None, optimistic=0.95)
    row = rows_by_name(tmp_path)["kl"]
    assert (row.ours.mean, row.optimistic.mean) == (pytest.approx(91), pytest.approx(94.5))


def test_row_with_a_missing_seed_says_its_own_n(tmp_path):
    comparison(tmp_path, ["kl", "gkl"])
    (tmp_path / "gkl/setting0/seed1/results.json").unlink()
    table = compare_with_paper(tmp_path)
    assert {line[0]: line[4] for line in cells(table)}["gkl"] == "90.00 (n=1)"
    assert table.missing == ("gkl/setting0/seed1",)


def test_report_holds_the_papers_table(tmp_path):
    pytest.importorskip("matplotlib")
    folder = comparison(tmp_path, ["kl", "ce"])
    text = write_report(folder).read_text(encoding="utf-8")
    assert "<h2>A table, teacher &gt; student</h2>" in text
    assert "crd</td>" in text
    assert "no loss here yet" in text
    path = folder / "comparison.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"published": None}))
    assert "no loss here yet" not in write_report(folder).read_text(encoding="utf-8")


def test_comparison_without_published_figures_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"has no `compare\.published`"):
        compare_with_paper(comparison(tmp_path, ["kl"], published=None))


def test_setting_is_described_by_its_weights():
    assert describe([CROSS_ENTROPY | {"weight": 0.1}, KL | {"weight": 0.9}]) == "0.1·CE + 0.9·KL(T 4, ×T²)"
    setting = load_recipe("resnet32x4-resnet8x4").compare.contenders["gkl"].settings[0]
    assert describe([term.model_dump(mode="json") for term in setting]) == (
        "1·CE + 1·GKL(class, mse 16, ce 1, γ 0.05, T 4, τ 4, warm-up 20)"
    )


def test_defaults_of_a_loss_are_not_described_and_what_differs_is():
    recipe = Recipe.model_validate({"task": "distill", "teachers": [{"run": "x"}], "losses": [{"name": "dkl"}]})
    (term,) = (term.model_dump(mode="json") for term in recipe.losses)
    assert describe([term]) == "1·DKL(sample, mse 1, ce 1)"
    assert describe([term | {"symmetric": True}]) == "1·DKL(sample, symmetric, mse 1, ce 1)"
    assert "row" in describe([GKL | {"normalizer": "row"}])
    assert "weights" not in describe([GKL | {"normalizer": "weights"}])


@pytest.mark.parametrize(
    ("recipe", "row", "words"),
    [
        ("vgg13-vgg8", "mlkd", "0.1·CE + 0.9·MLKD(temperatures 4/2/3/5/6, "),
        ("vgg13-vgg8", "ofd", "1·CE + 0.001·OFD"),
        ("vgg13-vgg8", "dkd", "1·CE + 1·DKD(target 1, rest 6, T 4, ×T², warm-up 20)"),
        ("vgg13-vgg8", "lskd", "0.1·CE + 9·KL(standardize, T 2, ×T²)"),
        ("wkd-resnet32x4-resnet8x4", "wkd_f", "1·CE + 0.08·WKD-F(cosine, after epoch 150, means 4, diagonal, grid 1, "),
    ],
)
def test_options_of_every_kind_are_described(recipe, row, words):
    (setting,) = load_recipe(recipe).compare.contenders[row].settings
    assert describe([term.model_dump(mode="json") for term in setting]).startswith(words)


@pytest.mark.parametrize(
    "term",
    [
        {"name": "kl", "weight": 0.9, "temperature": 4.0, "scale_by_t2": True},
        {"name": "kl", "weight": 2.0, "temperature": 3.0},
        {"name": "dkl", "ce_weight": 3.0, "temperature": 4.0, "scale_by_t2": True},
        {"name": "ikl", "prior": "sample", "mse_weight": 0.0, "ce_weight": 3.0, "temperature": 4.0},
        {"name": "gkl", "prior": "sample", "mse_weight": 0.0, "ce_weight": 0.5, "temperature": 2.0, "weight": 4.0},
    ],
)
def test_soft_gradient_is_the_factor_that_autograd_finds(term):
    options = Recipe.model_validate({"task": "distill", "teachers": [{"run": "x"}], "losses": [term]}).losses[0]
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 1, 5, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    (options.weight * build_loss("loss", options, Facts(5))(student, teacher, torch.tensor([0]))).backward()
    temperature = options.temperature
    expected = F.softmax(student / temperature, -1) - F.softmax(teacher / temperature, -1)
    assert torch.allclose(student.grad, soft_gradient([options.model_dump()]) * expected)


def test_soft_gradient_of_kl_times_t2_is_16_times_that_of_gkl_at_temperature_4():
    assert soft_gradient([CROSS_ENTROPY, KL | {"weight": 1.0}]) == 16 * soft_gradient([CROSS_ENTROPY, GKL])


def test_no_factor_where_there_is_no_soft_label_or_no_single_form():
    assert soft_gradient([CROSS_ENTROPY]) is None
    assert soft_gradient([KL, GKL | {"temperature": 2.0}]) is None
    assert soft_gradient([{"name": "js", "temperature": 1.0}]) is None
    assert soft_gradient([KL | {"standardize": True}]) is None


def test_table_names_its_source_and_says_that_best_on_test_is_too_high(tmp_path):
    console = Console(width=110, file=io.StringIO())
    console.print(rich_published(compare_with_paper(comparison(tmp_path, ["ce", "kl", "gkl"]))))
    text = " ".join(console.file.getvalue().split())
    assert all(
        words in text for words in ("A table, teacher > student", "91.00 ± 1.41", "no loss here yet", "too high")
    )


def test_held_out_images_are_said_where_the_protocol_is_not_the_papers(tmp_path):
    console = Console(width=300, file=io.StringIO())
    console.print(rich_published(compare_with_paper(comparison(tmp_path, ["kl"], protocol="holdout"))))
    assert "holds out images that the paper trained on" in console.file.getvalue()


def test_every_recipe_with_published_figures_has_the_papers_protocol():
    recipes = [load_recipe(name) for name in recipe_names()]
    published = [recipe for recipe in recipes if recipe.compare.published]
    assert published
    assert {recipe.protocol for recipe in published} == {"paper"}


def test_table_of_a_recipe_without_published_figures_is_refused_before_anything_is_trained(tmp_path, capsys):
    assert main(["compare", "distill/digits/few-labels", "--table", "--folder", str(tmp_path / "x")]) != 0
    assert "--table expected a recipe with `compare.published`" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
