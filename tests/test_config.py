"""Recipes: what is read, how overrides are merged, what a mistake says; and the losses' options against config's."""

import inspect

import pytest

from limbeck.config import TERMS, Recipe, TrainOptions, loss_options
from limbeck.config_files import (
    HEADER_FIELDS,
    check_teachers,
    dump,
    find_recipe,
    header_fields,
    load_recipe,
    read_header,
    recipe_names,
    short_name,
)
from limbeck.config_rows import select_rows
from limbeck.errors import UserError
from limbeck.objectives.build import KNOWN, LOSSES

TASKS = {
    "teacher": "supervised",
    "ablations": "distill",
    "robust": "adversarial",
    "incremental": "distill",
}  # of folders
FEW = "distill/digits/few-labels"


def recipe_file(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def mistake(*overrides, recipe=FEW):
    """The line that loading ends with."""
    with pytest.raises(UserError) as raised:
        load_recipe(recipe, overrides)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- recipes of the package ---


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_loads_and_its_header_has_every_field(name):
    recipe = load_recipe(name)
    for teacher in recipe.teachers:
        if teacher.recipe is not None:
            find_recipe(teacher.recipe)
    fields = header_fields(read_header(find_recipe(name)))
    assert recipe.title
    task = name.split("/")[0]
    if name.split("/")[-1].startswith("adversarial-"):
        task = "robust"  # of an ablation
    assert TASKS.get(task, task) == recipe.task
    assert [field for field in HEADER_FIELDS if not fields.get(field)] == []


CHOOSING = [  # rows with settings of our own; a published row has the paper's
    name for name in recipe_names() if name.startswith("distill/") and load_recipe(name).protocol == "holdout"
]


@pytest.mark.parametrize("name", CHOOSING)
def test_comparison_gives_every_row_the_same_number_of_settings_and_hinton_the_squared_temperature(name):
    recipe = load_recipe(name)
    rows = recipe.compare.contenders
    assert len({len(row.settings) for row in rows.values()}) == 1
    for row in rows.values():
        for common, *divergences in row.settings:
            assert common.name == "cross_entropy"
            assert all(term.scale_by_t2 for term in divergences if term.name in ("kl", "dkl"))
    if "dkl" in rows:
        assert ("kl", "dkl") in recipe.compare.equal_by_theory
        pairs = zip(rows["kl"].settings, rows["dkl"].settings, strict=True)
        assert all((kl[1].weight, kl[1].temperature) == (dkl[1].weight, dkl[1].temperature) for kl, dkl in pairs)


@pytest.mark.parametrize("name", recipe_names())
def test_dumped_recipe_reads_back_equal(name, tmp_path):
    recipe = load_recipe(name, ["optimizer.weight_decay=1e-05", "title='yes: #1'"])
    again = load_recipe(recipe_file(tmp_path, dump(recipe)))
    assert again == recipe
    assert list(again.compare.contenders) == list(recipe.compare.contenders)  # the order of the table


def test_recipe_is_found_by_the_end_of_its_name_where_that_is_unique():
    assert find_recipe("digits/few-labels") == find_recipe(FEW)
    assert short_name("digits/few-labels") == "distill-digits-few-labels"
    assert "`distill/digits/few-labels` or `distill/mnist5k/few-labels`" in mistake(recipe="few-labels")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("few-label", "unknown recipe `few-label`; did you mean `distill/digits/few-labels` or `distill/mnist5k/"),
        ("digits/fewlabels", "unknown recipe `digits/fewlabels`; did you mean `distill/digits/few-labels`?"),
        ("xyz", "unknown recipe `xyz`; `limbeck recipes` lists them"),
        ("nowhere.yaml", "recipe `nowhere.yaml`: no such file"),
    ],
)
def test_unknown_recipe_names_the_nearest(name, expected):
    assert mistake(recipe=name).startswith(expected)


def test_run_folder_in_place_of_a_recipe_names_its_file(tmp_path):
    (tmp_path / "config.yaml").write_text("title: mine\n")
    assert f"its recipe is {tmp_path / 'config.yaml'}" in mistake(recipe=str(tmp_path))


# --- YAML ---


def test_numbers_in_exponent_notation_are_numbers(tmp_path):
    path = recipe_file(
        tmp_path, "optimizer: {learning_rate: 1e-3}\nschedule: {name: multistep, milestones: [1e1, 2]}\n"
    )
    recipe = load_recipe(path, ["optimizer.weight_decay=5E-4"])
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.optimizer.weight_decay == 5e-4
    assert recipe.schedule.milestones == (10.0, 2.0)


def test_words_that_yaml_1_1_takes_for_other_types_stay_words(tmp_path):
    for word in ("no", "on", "2026-01-01", "12:30"):
        assert load_recipe(recipe_file(tmp_path, f"title: {word}\n")).title == word


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  epochs: 1\n  epochs: 2\n", "key `epochs` is given twice, on lines 2 and 3"),
        ("seed: 1\ntask: supervised\nseed: 2\n", "key `seed` is given twice, on lines 1 and 3"),
        ("title: a\ntrain: [\n", "mine.yaml, line 3: "),
        ("- 1\n", "expected options as `key: value`, got [1]"),
        ("", "expected options as `key: value`, got null"),
        ("title: !!python/name:os.system x\n", "could not determine a constructor"),
        ("losses: &loop [*loop]\n", "mine.yaml: `losses.0` expected a term"),
        ("train:\n  epoch: 3\n", "mine.yaml: unknown key `train.epoch`; did you mean `epochs`?"),
        ("train:\n  epochs: 0\n", "mine.yaml: `train.epochs` expected at least 1, got 0"),
        ("seed: -1\ntitle: 3\n", "(and 1 more)"),
    ],
)
def test_mistake_in_a_file_is_one_line(tmp_path, text, expected):
    assert expected in mistake(recipe=recipe_file(tmp_path, text))


def test_file_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in mistake(recipe=str(tmp_path / "mine.yaml"))


# --- overrides ---


def test_override_of_one_option_keeps_the_tag_and_the_rest():
    before, after = load_recipe(FEW).losses[1], load_recipe(FEW, ["losses.1.temperature=2"]).losses[1]
    assert after == before.model_copy(update={"temperature": 2.0})


def test_order_of_overrides_does_not_matter_but_for_the_same_path():
    overrides = ["losses.1.temperature=2", "losses.1.name=kl", "losses.2.weight=3", "losses.2={name: gkl}"]
    assert load_recipe(FEW, overrides) == load_recipe(FEW, overrides[::-1])
    assert load_recipe(FEW, ["seed=1", "seed=2"]).seed == 2


def test_new_name_of_a_term_starts_from_its_defaults_and_keeps_the_weight():
    recipe = load_recipe(FEW, ["losses.1.weight=0.5", "losses.1.name=js"])
    assert recipe.losses[1] == TERMS["js"](weight=0.5)


def test_overrides_take_lists_mappings_null_and_append():
    recipe = load_recipe(
        FEW,
        ["losses.2.name=kl", "data.labels_per_class=null", "schedule={name: multistep, milestones: [3, 5]}"],
    )
    assert [term.name for term in recipe.losses] == ["cross_entropy", "gkl", "kl"]
    assert recipe.data.labels_per_class is None
    assert recipe.schedule.milestones == (3.0, 5.0)


def test_overrides_reach_into_the_rows_of_a_comparison():
    recipe = load_recipe(FEW, ["compare.contenders.kl.settings.0.1.temperature=3"])
    assert recipe.compare.contenders["kl"].settings[0][1].temperature == 3.0


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("losses.1.temprature=2", "unknown key `losses.1.temprature`; did you mean `temperature`?"),
        (
            "losses.gkl.weight=2",
            "`losses` expected an index from 0 to 2 (2 appends), got `gkl`; did you mean `losses.1`?",
        ),
        ("losses.5.name=kl", "`losses` expected an index from 0 to 2 (2 appends), got `5`"),
        ("losses.1.name=gk", "`losses.1.name` expected a loss, got gk; did you mean `gkl`?"),
        ("losses.2.weight=1", "`losses.2` expected a term with a `name`, one of cross_entropy, kl"),
        ("losses=[]", "`losses` expected a list of at least 1, got []"),
        ("losses.1.prior=clas", "`losses.1.prior` expected 'class' or 'sample', got clas; did you mean `class`?"),
        ("epochs=3", "unknown key; did you mean `train.epochs`?"),
        ("optimiser.momentum=0", "unknown key; did you mean `optimizer.momentum`?"),
        ("optimizer.lr=1", "unknown key `optimizer.lr`; expected one of `name`, `learning_rate`"),
        ("optimizer.learning_rate=-1", "`optimizer.learning_rate` expected a number above 0, got -1"),
        ("optimizer.learning_rate=nan", "`optimizer.learning_rate` expected a finite number, got nan"),
        ("train.epochs=true", "`train.epochs` expected no boolean, got true"),
        ("train.epochs=2.5", "`train.epochs` expected an integer, got 2.5"),
        ("train.refresh_every=ever", "`train.refresh_every` expected 'epoch' or an integer, got ever"),
        ("train.epochs.x=1", "`train.epochs` is a value and has no keys"),
        ("train.accumulate=3", "`train.batch_size` expected a multiple of `train.accumulate`, got 64 and 3"),
        ("train.epochs", "expected path=value"),
        ("train..epochs=1", "expected path=value"),
        ("train.epochs=[1", "expected ',' or ']'"),
        ("task=supervised", "the loss `gkl` draws to another network, got task `supervised`"),
        ("teachers=[]", "task `distill` expected at least one entry in `teachers`"),
        ("teachers.0.run=runs/x", "`teachers.0`: expected exactly one of `run`, `recipe` and `model`; set the others"),
        ("teachers=[{weights: f.pth}]", "got none; `weights` need the network of a `recipe` or `model` beside them"),
        ("teachers=[{}]", "`teachers.0`: expected one of `run`, `recipe` and `model`, got none"),
        ("compare.baseline=kll", "no row `kll`, did you mean `kl`?"),
        ("compare.contenders.a/b.settings=[[{name: kl}]]", "expected letters, digits, `-` and `_`, got a/b"),
        ("schedule.name=multistep", "expected epochs in `milestones`, got none"),
    ],
)
def test_mistake_in_an_override_names_it_and_the_way_out(override, expected):
    line = mistake("seed=3", override)
    assert line.startswith(f"--set {override}: ")
    assert expected in line


def test_a_mistake_that_two_overrides_make_together_names_both_and_no_third():
    line = mistake("seed=3", "train.batch_size=50", "train.accumulate=4", "train.epochs=2")
    assert line.startswith("--set train.batch_size=50 --set train.accumulate=4: `train.batch_size` expected a multiple")


def test_mistake_in_the_file_is_not_blamed_on_an_override(tmp_path):
    path = recipe_file(tmp_path, "train: {epochs: 0}\n")
    assert mistake("seed=1", recipe=path).startswith(f"{path}: ")


def test_unknown_recipe_of_a_teacher_is_told_before_anything_is_trained():
    recipe = load_recipe(FEW, ["teachers.0.recipe=digits/techer"])
    with pytest.raises(
        UserError, match=r"`teachers.0.recipe`: unknown recipe `digits/techer`; did you mean `supervised/"
    ):
        check_teachers(recipe)


def test_rows_are_chosen_by_name():
    recipe = load_recipe(FEW)
    assert select_rows(recipe, None) is None
    assert select_rows(recipe, "kl, gkl,kl") == ("kl", "gkl")
    with pytest.raises(UserError, match=r"unknown row `glk`; did you mean `gkl`\? \(rows: ce, kl, dkl, ikl, gkl\)"):
        select_rows(recipe, "kl,glk")
    with pytest.raises(UserError, match="expected the baseline `kl` among the rows, got gkl"):
        select_rows(recipe, "gkl")
    with pytest.raises(UserError, match="no rows to compare"):
        select_rows(load_recipe("digits/teacher"), None)


# --- options ---


def test_options_refuse_a_boolean_for_a_number_in_python_too():
    with pytest.raises(ValueError, match="expected no boolean, got true"):
        TrainOptions(epochs=True)
    assert TrainOptions(drop_last=True).drop_last


def test_every_option_is_described():
    def options(model):
        for name, field in model.model_fields.items():
            inner = field.annotation
            if inspect.isclass(inner) and issubclass(inner, TrainOptions.__base__):
                yield from options(inner)
            elif name != "name" or model not in TERMS.values():
                yield f"{model.__name__}.{name}", field.description

    models = [Recipe, *TERMS.values()]
    assert [path for model in models for path, description in options(model) if not description] == []


def test_every_divergence_has_a_constructor():
    assert LOSSES.keys() == TERMS.keys() - {"cross_entropy"}


@pytest.mark.parametrize("name", LOSSES)
def test_constructor_has_the_options_of_the_config_in_order_with_their_defaults(name):
    declared = {
        option: field.default
        for option, field in TERMS[name].model_fields.items()
        if option in loss_options(TERMS[name])
    }
    signature = inspect.signature(LOSSES[name])
    taken = {
        parameter.name: parameter.default
        for parameter in signature.parameters.values()
        if parameter.name not in (*KNOWN, "reduction")
    }
    assert list(taken.items()) == list(declared.items())
    assert "reduction" not in [option for option in signature.parameters if option != "impl"][:-1]
    assert "impl" not in list(signature.parameters)[:-1]


def test_a_row_may_be_spelt_as_the_loss_and_the_other_way_round():
    recipe = load_recipe("distill/digits/methods")
    assert select_rows(recipe, "kl, wkd_l,review-kd") == ("kl", "wkd-l", "review-kd")
    assert select_rows(recipe, "all") is None


def test_a_file_of_a_teachers_weights_that_is_not_there_is_said_at_once(tmp_path):
    recipe = load_recipe("distill/imagenet/resnet34-resnet18")
    with pytest.raises(UserError, match=r"^`teachers\.0\.weights` expected a file, got resnet34-b627a593\.pth"):
        check_teachers(recipe)
    weights = tmp_path / "weights.pth"
    weights.touch()
    check_teachers(load_recipe("distill/imagenet/resnet34-resnet18", [f"teachers.0.weights={weights}"]))
