"""Everything is declared in pyproject.toml, but that the configs at the top of the checkout go into the package as dim_jax/configs."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree(
                "configs", Path(self.build_lib) / "dim_jax/configs", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
            )


setup(cmdclass={"build_py": BuildWithConfigs})
