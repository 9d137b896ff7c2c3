"""Files that a crash leaves as they were or as they should be."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; the file takes its place at the end, or is removed after an exception."""
    aside = path.with_name(f"{path.name}.partial")
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
