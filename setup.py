"""What pyproject.toml cannot say: notebooks, parameter files and profiles travel in the package.

They lie beside the library in a checkout, and in the folder `study` of an installed one, where
`shfcas init` finds them.
"""

from setuptools import find_packages, setup

STUDY = ("notebooks", "params", "profiles")

setup(
    packages=[
        *find_packages(include=["shfcas_lib*"]),
        *(f"shfcas_lib.study.{name}" for name in STUDY),
    ],
    package_dir={f"shfcas_lib.study.{name}": name for name in STUDY},
)
