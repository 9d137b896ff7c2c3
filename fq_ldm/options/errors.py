"""What scripts say in one line, and with which exit status."""


class UserError(Exception):
    """Something the user can mend; scripts print its one line and leave with `exit_status`."""

    exit_status = 2  # usage


class DataError(UserError):
    """A wrong or unreadable input file."""

    exit_status = 1


def check(condition: bool, name: str, value, rule: str) -> None:
    """Raise a `UserError` that names the option, its value and the rule that it breaks."""
    if not condition:
        raise UserError(f"{name}: {rule}, not {value}")
