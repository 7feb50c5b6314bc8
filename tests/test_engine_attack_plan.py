"""Attacks on the runs that a comparison chose: on those alone, once, and the same with several workers."""

import json
import os
import signal
import sys

import pytest
from engine_runs import merge, recipe

from limbeck.analysis.comparison import summarise
from limbeck.config_files import dump
from limbeck.engine import robustness, run_folder
from limbeck.engine.attack_plan import attack_runs
from limbeck.engine.compare import compare
from limbeck.engine.progress import PlainReporter
from limbeck.errors import Interrupted
from limbeck.present import compare_and_show

SETTINGS = [[{"name": "cross_entropy"}, {"name": "kl", "weight": weight}] for weight in (1.0, 6.0)]


def robust_recipe(**changes):
    base = {
        "task": "adversarial",
        "title": "Robust digits",
        "data": {"standardise": False},
        "losses": SETTINGS[0],
        "adversary": {"epsilon": 0.1, "steps": 1, "validation_attack": "cw1", "attacks": ["pgd2", "cw2"]},
        "train": {"epochs": 1},
        "compare": {
            "baseline": "trades",
            "contenders": {
                "trades": {"settings": SETTINGS},
                "pgd_at": {"settings": [[{"name": "cross_entropy", "on": "adversarial"}]], "adversary": {"steps": 2}},
            },
        },
    }
    return recipe(**merge(base, changes))


def attacked(folder):
    """Run -> the attacks in its robustness.json."""
    found = {}
    for path in sorted(folder.glob("*/setting*/seed*")):
        file = path / "robustness.json"
        rows = json.loads(file.read_text())["rows"] if file.is_file() else []
        found[path.relative_to(folder).as_posix()] = [(row["attack"], row["accuracy"]) for row in rows]
    return found


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacks") / "comparison"
    compare_and_show(robust_recipe(), folder, rows=None, seeds=2, workers=1)
    return folder


def test_test_images_are_attacked_for_the_chosen_setting_alone(shown):
    chosen = {
        run.folder.relative_to(shown).as_posix() for runs in summarise(shown).selected_runs().values() for run in runs
    }
    made = {run: [name for name, _ in rows] for run, rows in attacked(shown).items()}
    assert {run for run, rows in made.items() if rows} == chosen
    assert all(made[run] == ["pgd2", "cw2"] for run in chosen)


def test_row_with_an_adversary_of_its_own_trains_with_that(shown):
    steps = {
        name: run_folder.read_results(shown / name / "setting0/seed0")["adversary"]["steps"]
        for name in ("trades", "pgd_at")
    }
    assert steps == {"trades": 1, "pgd_at": 2}


def test_attacks_that_are_made_are_not_made_again(shown, monkeypatch):
    before = attacked(shown)
    monkeypatch.setattr(robustness, "evaluate", lambda *_, **__: pytest.fail("attacked again"))
    compare_and_show(robust_recipe(), shown, rows=None, seeds=2, workers=1)
    assert attacked(shown) == before


def test_two_workers_find_what_one_finds(shown, tmp_path):
    compare(robust_recipe(), tmp_path, seeds=2)
    runs = [run.folder for chosen in summarise(tmp_path).selected_runs().values() for run in chosen]
    attack_runs(tmp_path, runs, ["pgd2", "cw2"], workers=2)
    assert attacked(tmp_path) == attacked(shown)


def test_signal_ends_the_attacks_and_the_same_call_goes_on(tmp_path, monkeypatch):
    compare(robust_recipe(), tmp_path, seeds=1, rows=["pgd_at"])
    runs = [tmp_path / "pgd_at/setting0/seed0"]
    evaluation = sys.modules["limbeck.adversary.evaluate"]  # the package has a function of this name
    attack = evaluation.pgd
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return attack(*arguments, **options)

    monkeypatch.setattr(evaluation, "pgd", counted)
    with pytest.raises(Interrupted, match="the same command goes on with the attacks"):
        attack_runs(tmp_path, runs, ["pgd2"], workers=1)
    attack_runs(tmp_path, runs, ["pgd2"], workers=1)
    assert [name for name, _ in attacked(tmp_path)["pgd_at/setting0/seed0"]] == ["pgd2"]


def test_plan_of_attacks_tells_what_each_run_kept(shown, capsys, tmp_path):
    (shown / "pgd_at/setting0/seed0/robustness.json").unlink()
    attack_runs(shown, [shown / "pgd_at/setting0/seed0"], ["pgd2", "cw2"], workers=1, reporter=PlainReporter())
    told = capsys.readouterr().err
    assert "Attacks: pgd2, cw2: 1 runs" in told or "Attacks: pgd2, cw2: 1 run" in told
    assert "pgd_at/setting0/seed0: test" in told
    assert "cw2" in told.splitlines()[-1]


def test_attacks_of_a_recipe_are_no_part_of_what_a_run_is(tmp_path):
    folder = tmp_path / "run"
    run_folder.prepare(folder, robust_recipe())
    changed = robust_recipe(adversary={"attacks": []})
    assert "attacks" in dump(changed)
    assert run_folder.is_finished(folder, changed, resume=True) is False  # and no error
