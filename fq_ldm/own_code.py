"""Saved folders that bring their own code: what diffusers needs to load them where this package is not installed."""

import importlib
import inspect
import json
import sys
from pathlib import Path

GENERATED = '"""Generated from the package fq_ldm '  # how a file with such code begins


class OwnCode:
    """A diffusers class that saves, beside its configuration, one Python file with its own code.

    The installed package joins that file from its modules; the class in such a file copies it. What is saved can so be
    loaded with and without the package, and saved again.
    """

    package_only: tuple[str, ...] = ()  # modules that the file leaves empty

    @classmethod
    def own_code(cls) -> tuple[str, str] | None:
        """Name (without .py) and text of the file, or None for a class of somebody else's that inherits from ours."""
        module = sys.modules.get(inspect.unwrap(cls.__init__).__module__)
        file = getattr(module, "__file__", None)
        if file is None or getattr(module, cls.__name__, None) is not cls:
            return None
        text = Path(file).read_text()
        if not text.startswith(GENERATED):
            if module.__name__.split(".")[0] != "fq_ldm":
                return None
            version = importlib.import_module("fq_ldm").__version__
            text = importlib.import_module("fq_ldm.bundle").bundle(module.__name__, version, cls.package_only)
        return Path(file).stem, text

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs) -> None:
        """Write the configuration and, beside it, the code; the arguments are diffusers'."""
        folder = Path(save_directory)
        if not folder.is_file() and (code := self.own_code()) is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{code[0]}.py").write_text(code[1])
        super().save_config(save_directory, push_to_hub, **kwargs)

    def to_json_string(self) -> str:
        """The configuration as JSON, with what leads diffusers to the code."""
        config, code = json.loads(super().to_json_string()), self.own_code()
        config.pop("_name_or_path", None)  # where it was loaded from: nobody's business
        if code is not None:
            config = self.with_code(config, code[0])
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    def with_code(self, config: dict, module: str) -> dict:
        """The configuration with what leads diffusers to the code in `module`."""
        raise NotImplementedError
