"""What programs may rely on: no name of the public API, and no argument, changes unnoticed."""

import subprocess
import sys

import pytest

import dim_jax
from tests.public_api import LISTING, ROOT, definition, listing, modules


def test_the_listing_is_true():
    assert LISTING.read_text() == listing(), "If this change of the public API is meant: make api, and a line in CHANGELOG.md."


@pytest.mark.parametrize("name", modules())
def test_every_name_is_there_and_says_what_it_does(name):
    assert name in dim_jax.__all__
    assert getattr(dim_jax, name).__module__ == modules()[name]
    assert definition(modules()[name], name).body[0].value.value.strip(), "a docstring"


def test_names_are_loaded_when_they_are_asked_for():
    program = "import sys, dim_jax; dir(dim_jax); dim_jax.InputError; print('jax' in sys.modules, 'numpy' in sys.modules); dim_jax.nothing"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "False False\n"
    assert done.stderr.endswith("AttributeError: module 'dim_jax' has no attribute 'nothing'\n")


def test_everything_by_a_star():
    names: dict[str, object] = {}
    exec("from dim_jax import *", names)
    assert set(dim_jax.__all__) <= names.keys()
