"""What a saved FQ-VAE says of itself to diffusers."""

from diffusers import VQModel

from ..own_code import OwnCode

NOT_A_VQMODEL = (
    "a VQModel in these weights (they are an FQ-VAE's: load them with fq_ldm.load_vae, or with AutoModel and "
    "trust_remote_code=True)"
)


class SavedVQModel(OwnCode, VQModel):
    """A `VQModel` whose folder holds its code, for `AutoModel`, and that the plain `VQModel` refuses to load."""

    def with_code(self, config: dict, module: str) -> dict:
        """The configuration with the class for `AutoModel`, and with a block that the plain `VQModel` does not find.

        Without it, that would take the weights, warn that it knows none of them, and start from random ones.
        """
        return config | {
            "auto_map": {"AutoModel": f"{module}.{type(self).__name__}"},
            "down_block_types": [NOT_A_VQMODEL],
        }

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """The parent's, without what `with_code` adds."""
        own = {name: value for name, value in config_dict.items() if name not in ("auto_map", "down_block_types")}
        return super().extract_init_dict(own, **kwargs)
