"""Imports run one way, from what is shared to what a person starts. The ranks are this one table."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dim_jax"
# A file imports from lower ranks and from its own folder; the longest name that fits counts.
RANKS = {
    "dim_jax.errors": -3,
    "dim_jax": 0,  # the version
    "dim_jax.storage": -2,
    "dim_jax.console": 0,
    "dim_jax.rng": 0,
    "dim_jax.plugins": 0,
    "dim_jax.memory": 0,
    "dim_jax.markdown": 0,
    "dim_jax.processes": 1,
    "dim_jax.sheets": 1,
    "dim_jax.config": 1,
    "dim_jax.processing": 2,
    "dim_jax.data": 3,
    "dim_jax.diffusion": 3,
    "dim_jax.designer": 3,  # asks servers, without JAX
    "dim_jax.models": 3,
    "dim_jax.datasets": 4,  # data sets from files and answers, without JAX; training reads only what they write
    "dim_jax.models.dim": 4,  # the composition, and so the only model that knows of the diffusion
    "dim_jax.settings": 4,
    "dim_jax.checkpoint": 4,  # our own format; the published ones convert to it and from it
    "dim_jax.weights": 5,
    "dim_jax.sharding": 6,
    "dim_jax.edit_result": 6,
    "dim_jax.compositing": 5,
    "dim_jax.batching": 6,
    "dim_jax.programs": 6,  # what sampling compiles
    "dim_jax.sampling": 7,
    "dim_jax.pipeline": 8,
    "dim_jax.designer.local": 8,  # runs an encoder, which it may share with a painter
    "dim_jax.session": 9,
    "dim_jax.training": 9,
    "dim_jax.evals": 10,
    "dim_jax.demo": 9,
    "dim_jax.doctor": 9,
    "dim_jax.verify": 9,
    "dim_jax.publishing": 9,
    "dim_jax.serve": 10,
    "dim_jax.web": 11,
    "dim_jax.train": 10,
    "dim_jax.caching": 10,
    "dim_jax.aot": 11,  # compiles the step of `train`
    "dim_jax.cli": 13,
}
ENTRY_POINTS = {
    "dim_jax.cli",
    "dim_jax.caching",
    "dim_jax.aot",
    "dim_jax.evals",
    "dim_jax.demo",
    "dim_jax.doctor",
    "dim_jax.verify",
    "dim_jax.publishing",
    "dim_jax.serve",
    "dim_jax.web",
    "dim_jax.datasets",
}  # imported by the command alone, and
# A benchmark of our own is a data set that we made; the page shows the demo's examples, and paints as the server does.
READERS = {("dim_jax.evals", "dim_jax.datasets"), ("dim_jax.web", "dim_jax.serve"), ("dim_jax.web", "dim_jax.demo")}


def area(module: str) -> str:
    """The row of RANKS that a module belongs to."""
    parts = module.split(".")
    for end in range(len(parts), 1, -1):
        if (name := ".".join(parts[:end])) in RANKS:
            return name
    assert len(parts) == 1, f"{module} has no rank: give it a row in RANKS."
    return module


MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in PACKAGE.rglob("*.py")
}


def imports(module: str) -> set[str]:
    """The modules of this package that a module imports, wherever in its text."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in whole}
    return {name for name in found if name.split(".")[0] == "dim_jax"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_one_way(module):
    here = area(module)
    for other in imports(module):
        there = area(other)
        assert here == there or RANKS[there] < RANKS[here], f"{module} imports {other}"
        allowed = here in (there, "dim_jax.cli") or (here, there) in READERS
        assert there not in ENTRY_POINTS or allowed, f"{module} imports the entry point {other}"


def test_data_and_diffusion_know_nothing_of_each_other():
    """They have one rank, and the comparison above is strict; only the composition joins models and diffusion."""
    users = {
        module for module in MODULES for other in imports(module) if area(other) == "dim_jax.diffusion" and area(module) != area(other)
    }
    assert {user for user in users if user.startswith("dim_jax.models")} == {"dim_jax.models.dim"}


def test_the_command_starts_quickly():
    """Nothing at the top of errors, folders and bundled needs JAX."""
    for module in ("dim_jax", "dim_jax.errors", "dim_jax.storage.folders", "dim_jax.weights.bundled"):
        text = MODULES[module].read_text()
        assert not any(name in text for name in ("import jax", "import flax", "from flax", "from jax"))


def test_painting_needs_no_package_of_an_extra():
    """`make demo` and a plain `pip install` have none of them."""
    extras = "{'array_record', 'grain', 'ml_collections', 'openai', 'peft', 'tensorboard', 'tensorflow_datasets', 'torch'}"
    program = f"import sys, dim_jax.demo, dim_jax.session, dim_jax.weights.convert; print({extras} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert loaded.stdout == "set()\n"


def test_one_room_talks_to_the_hub():
    """Others may take helpers of its library: how shards are named, and what a card's first lines are."""
    users = {}
    for module in MODULES:
        for node in ast.walk(ast.parse(MODULES[module].read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "huggingface_hub":
                users.setdefault(module, set()).update(alias.name for alias in node.names)
    users.pop("dim_jax.storage.hub")
    helpers = {"split_state_dict_into_shards_factory", "EvalResult", "ModelCard", "ModelCardData"}
    assert all(names <= helpers for names in users.values()), users
