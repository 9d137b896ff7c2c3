"""From YAML files and flags to dataclasses, and back."""

import argparse
import difflib
import sys
from dataclasses import asdict, fields
from importlib.resources import files
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from .errors import UserError, check


def parse_config(argv: list[str], *config_classes, required: tuple[str, ...] = ()) -> tuple:
    """Read `--config FILE_OR_NAME ...` and `--key value` flags, which win, into one instance of each dataclass.

    Of several files the later wins, and a null, there or as a flag, takes an option back to its default. Values from
    files are parsed as flags are, so both have the same types and the same messages.

    Raises:
        UserError: for an unreadable file, an unknown key, a wrong value or a missing required option.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config", nargs="+", default=[])
    known, flags = own.parse_known_args(argv)
    parser = _Parser(config_classes, prog=Path(sys.argv[0]).name, allow_abbrev=False)
    parser.add_argument(
        "--config",
        metavar="FILE",
        nargs="+",
        help="YAML files with any of these options, or names such as celeba64/vae",
    )
    parser.add_argument("--debug", action="store_true", help="show where in the code an error was found")
    values = {}
    for path in known.config:
        values.update(_read_file(path, config_classes))
    flags = _take_back(flags, values, {field.name for cls in config_classes for field in fields(cls)})
    file_flags = []
    for key, value in values.items():
        if value is not None:
            file_flags += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    namespace = vars(parser.parse_args(file_flags + flags))
    configs = tuple(cls(**{f.name: namespace[f.name] for f in fields(cls) if f.init}) for cls in config_classes)
    for name in required:
        check(
            namespace[name] not in ("", None),
            name,
            "nothing",
            f"is required: give --{name} or put it in the configuration",
        )
    return configs


def _take_back(flags: list[str], values: dict, names: set[str]) -> list[str]:
    """The flags without those whose value is null; the files' values of these options become None."""
    kept: list[str] = []
    for word in flags:
        if word == "null" and kept and kept[-1].removeprefix("--") in names:
            values[kept.pop().removeprefix("--")] = None
        else:
            kept.append(word)
    return kept


class _Parser(HfArgumentParser):
    def error(self, message):
        raise UserError(f"{message} (--help lists the options)")


def find_config(name: str) -> Path:
    """The file of this path or, if there is none, the configuration of this name that comes with the package.

    Raises:
        UserError: if there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = Path(str(files("fq_ldm.configs")))
    named = folder / f"{name}.yaml"
    if not path.is_absolute() and named.is_file():
        return named
    names = [
        str(file.relative_to(folder).with_suffix(""))
        for file in sorted(folder.glob("*/*.yaml"))
        if file.parent.name != "accelerate"
    ]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise UserError(f"config: {name} cannot be read: it is no file, and no name of a configuration{hint}")


def _read_file(path: str, config_classes) -> dict:
    try:
        values = yaml.safe_load(find_config(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold 'key: value' lines")
    names = [f.name for cls in config_classes for f in fields(cls)]
    for key, value in values.items():
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            raise UserError(f"{path}: unknown key '{key}'" + (f"; did you mean '{close[0]}'?" if close else ""))
        if isinstance(value, dict):
            raise UserError(f"{path}: '{key}' must be a value, not a mapping")
    return values


def resolved(*configs) -> dict:
    """All options in one flat dictionary, as they are saved."""
    return {name: value for config in configs for name, value in asdict(config).items()}


def to_yaml(values: dict) -> str:
    """The text of a configuration file with these values."""
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None)
