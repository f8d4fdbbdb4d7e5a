"""Functions of the user's own, named `module:function` in a parameter file, and nobody else's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError


def _own(package: str) -> bool:
    """Does this module lie outside this library, Python, and what was installed into it?

    One that is not there is nobody's.
    """
    if package in sys.stdlib_module_names or package == __name__.partition(".")[0]:
        return False
    spec = importlib.util.find_spec(package)
    if spec is None:
        return True
    files = list(spec.submodule_search_locations or [])
    if spec.has_location and spec.origin is not None:
        files.append(spec.origin)
    return not any(_is_installed(Path(file).resolve()) for file in files)


def _is_installed(path: Path) -> bool:
    """Does this path lie where Python or its packages are installed?"""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [Path(sysconfig.get_path(name)).resolve() for name in names]
    return any(path.is_relative_to(folder) for folder in folders)


def imported(name: str, what: str) -> Callable:
    """The user's own function named `module:function`.

    Raises InputError that says what is missing, or that the module is not the user's: a
    parameter file of somebody else must not reach `os:system`.
    """
    module, _, attribute = name.partition(":")
    if str(places.home()) not in sys.path:
        # a module beside notebooks/ and params/ is found, wherever the kernel was started
        sys.path.append(str(places.home()))
    try:
        if not _own(module.partition(".")[0]):
            raise InputError(
                f"{what} {name!r}: module {module!r} belongs to Python or to an installed package,"
                " expected a file of your own"
            )
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{what} {name!r}: cannot be imported ({error})") from error
    if not callable(function):
        raise InputError(f"{what} {name!r}: is not a function")
    return function
