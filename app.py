"""A page to try a pipeline on: python app.py [PIPELINE]     (pip install 'fq-ldm[demo]')

Generate, reconstruct, look inside the tokens, interpolate. Runs on the pipeline that comes with the repository by
default, without a network.
"""

import argparse

import gradio as gr

from demo.looks import Looks
from demo.tabs import generate_tab, inside_tab, interpolate_tab, reconstruct_tab

DEFAULT = "checkpoints/celeba64"


def build(looks: Looks) -> gr.Blocks:
    """The page."""
    examples = looks.examples()
    with gr.Blocks(title="FQ-LDM") as page:
        gr.Markdown(f"# FQ-LDM\n{looks.summary}")
        with gr.Tab("Generate"):
            generate_tab(looks)
        with gr.Tab("Reconstruct"):
            reconstruct_tab(looks, examples)
        with gr.Tab("Look inside"):
            inside_tab(looks, examples)
        with gr.Tab("Interpolate"):
            interpolate_tab(looks)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", nargs="?", default=DEFAULT, help="folder or Hub repository")
    parser.add_argument("--host", help="by default GRADIO_SERVER_NAME, which Spaces set, or else this machine alone")
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args()
    build(Looks(options.pipeline)).queue().launch(server_name=options.host, server_port=options.port)


if __name__ == "__main__":
    main()
