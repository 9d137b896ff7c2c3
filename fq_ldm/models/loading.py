"""Loading a saved model without naming its class."""

from .autoencoder import TokenAutoencoder
from .baselines import BaselineModel, HQAModel
from .fq_model import FQModel

CLASSES = {cls.__name__: cls for cls in (FQModel, BaselineModel, HQAModel)}


def load_vae(name: str) -> TokenAutoencoder:
    """The FQ-VAE or baseline saved in a folder or a Hub repository, in evaluation mode.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is a model of another kind.
    """
    class_name = TokenAutoencoder.load_config(name).get("_class_name")
    if class_name not in CLASSES:
        raise ValueError(f"{name}: holds a model of class {class_name}, not one of {', '.join(CLASSES)}")
    model, info = CLASSES[class_name].from_pretrained(name, use_safetensors=True, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise ValueError(f"{name}: the weights are those of another model than its config.json describes")
    return model.eval()
