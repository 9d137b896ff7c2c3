"""Fields of the dataclasses of options."""

from dataclasses import field, fields

from .errors import check


def option(default, help: str, **kwargs):
    """A dataclass field with a help text for `--help`."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **kwargs})
    return field(default=default, metadata={"help": help, **kwargs})


def check_positive(config, but: tuple[str, ...] = ()) -> None:
    """Every number of a configuration, alone or in a list, must be positive."""
    for field_ in fields(config):
        value = getattr(config, field_.name)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool) and field_.name not in but:
                check(number > 0, field_.name, value, "must be positive")
