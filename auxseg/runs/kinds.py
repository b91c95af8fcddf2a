"""What kind of value each setting is, going by configs/base.py: those of a run come from JSON, which may be a stranger's."""

from __future__ import annotations

import functools
import importlib.util
import math
import pathlib

import ml_collections

from auxseg.base.errors import InputError

_PACKAGE = pathlib.Path(__file__).parents[1]


def folder():
    """Returns the folder of auxseg's own settings files: inside an installed package, beside it in a clone."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


@functools.cache
def read_base():
    """Returns the settings of configs/base.py, a locked ConfigDict."""
    spec = importlib.util.spec_from_file_location("auxseg_base_settings", folder() / "base.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def check_kinds(settings, *, where):
    """Raises an InputError for the first setting of base.py that is missing or of another kind.

    Args:
        settings: ConfigDict.
        where: file that they are from.
    """
    _check_group(settings, read_base(), "", where)


def _check_group(found, base, prefix, where):
    for name in base:
        full, value = f"{prefix}{name}", found.get(name)
        if not isinstance(base[name], ml_collections.ConfigDict):
            if not _is_kind(value, base[name], base.get_type(name)):
                _refuse(full, value, base.get_type(name).__name__, where)
            continue
        if not isinstance(value, ml_collections.ConfigDict):
            _refuse(full, value, "settings", where)
        if len(base[name]):
            _check_group(value, base[name], f"{full}.", where)
        else:
            _check_sources(value, base, full, where)


def _check_sources(found, base, name, where):
    """Checks the settings of the sources of a mixture: those of their group that they name."""
    for label, source in found.items():
        if not isinstance(source, ml_collections.ConfigDict):
            _refuse(f"{name}.{label}", source, "settings", where)
        for each, value in source.items():
            if each in base and not _is_kind(value, base[each], base.get_type(each)):
                _refuse(f"{name}.{label}.{each}", value, base.get_type(each).__name__, where)


def _refuse(name, value, kind, where):
    raise InputError(
        f"{where}: {name} is {value!r:.80}, expected {kind}; it is damaged, no run's, or of another version of auxseg"
    )


def _is_kind(value, default, kind):
    """Returns whether a value is of a setting's kind; None where the setting has no value by default."""
    if value is None or kind is object:
        return default is None
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is tuple and default:
        return isinstance(value, tuple) and all(
            _is_kind(each, default[0], type(default[0])) for each in value
        )
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
