"""The tabs of the page."""

from itertools import pairwise

import gradio as gr

from .looks import Looks

ALONE = {"concurrency_limit": 1, "concurrency_id": "model"}  # visitors wait for one another
EXAMPLES = "Or click on what the pipeline has made"


def generate_tab(looks: Looks) -> None:
    """Samples that appear while they are denoised."""
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        count = gr.Slider(1, 16, 8, step=1, label="Images")
        steps = gr.Slider(4, 50, 20, step=1, label="Steps")
        label = _class_choice(looks)
        guidance = gr.Slider(1, 5, 1, step=0.5, label="Guidance", visible=bool(looks.class_names))
        guide_all = gr.Checkbox(
            False, label="Guide all by attention: fewer broken, more alike", visible=looks.has_attention
        )
    button = gr.Button("Generate", variant="primary")
    gallery = gr.Gallery(columns=4, label="Samples", elem_id="samples", height=680)

    def generate(seed, count, steps, label, guidance, guide_all, progress=gr.Progress()):  # noqa: B008 (gradio's way)
        for share, pictures in looks.generate(int(seed), int(count), int(steps), label, guidance, guide_all):
            progress(share)
            yield pictures

    button.click(generate, [seed, count, steps, label, guidance, guide_all], gallery, **ALONE)


def reconstruct_tab(looks: Looks, examples: list[str]) -> None:
    """An image beside what its tokens keep of it.

    Args:
        looks: at the pipeline.
        examples: files of pictures to click on.
    """
    with gr.Row():
        image = gr.Image(type="pil", label="Your image", elem_id="upload")
        cut = gr.Image(label="Cut to size")
        decoded = gr.Image(label="Reconstruction", elem_id="reconstruction")
        tokens = gr.Image(label="Its tokens, a colour for each code")
    words = gr.Markdown(elem_id="bits")
    gr.Examples([[file] for file in examples], [image], label=EXAMPLES)

    def reconstruct(image):
        if image is None:
            return None, None, None, ""
        return looks.reconstruct(image)

    image.change(reconstruct, image, [cut, decoded, tokens, words], **ALONE)


def inside_tab(looks: Looks, examples: list[str]) -> None:
    """What a token is: taken out, and swapped between images.

    Args:
        looks: at the pipeline.
        examples: files of pictures to click on, two at a time.
    """
    gr.Markdown("A token is no place in the image: it is a wave pattern over all of it. Take one out, and see.")
    with gr.Row():
        first = gr.Image(type="pil", label="An image", elem_id="first", height=200)
        second = gr.Image(type="pil", label="Another, to swap with", elem_id="second", height=200)
    gr.Examples([list(pair) for pair in pairwise(examples)], [first, second], label=EXAMPLES)
    token = gr.Slider(0, looks.vae.config.num_tokens - 1, 0, step=1, label="Token to take out")
    with gr.Row():
        outputs = [gr.Image(label=name, height=280) for name in ("With all tokens", "Without it", "Difference")]
    words = gr.Markdown(elem_id="change")
    label = "Bands of the tokens taken from the second image, coarse to fine"
    bands = gr.Gallery(columns=9, label=label, elem_id="bands", height=190)

    def take_out(image, token):
        return (None, None, None, "") if image is None else looks.without_token(image, int(token))

    def swap(first, second):
        return [] if first is None or second is None else looks.swap_bands(first, second)

    for event in (first.change, token.release):
        event(take_out, [first, token], [*outputs, words], **ALONE)
    for image in (first, second):
        image.change(swap, [first, second], bands, **ALONE)


def interpolate_tab(looks: Looks) -> None:
    """Between two seeds."""
    with gr.Row():
        first = gr.Number(0, label="From seed", precision=0, minimum=0)
        second = gr.Number(1, label="To seed", precision=0, minimum=0)
        count = gr.Slider(3, 12, 8, step=1, label="Images")
        steps = gr.Slider(10, 50, 25, step=1, label="Steps")
        label = _class_choice(looks)
    button = gr.Button("Interpolate", variant="primary")
    gallery = gr.Gallery(columns=8, label="On the way", elem_id="way", height=200)

    def interpolate(first, second, count, steps, label):
        return looks.interpolate(int(first), int(second), int(count), int(steps), label)

    button.click(interpolate, [first, second, count, steps, label], gallery, **ALONE)


def _class_choice(looks: Looks) -> gr.Dropdown:
    """A choice of a class; not shown where there are none."""
    return gr.Dropdown(looks.class_names, label="Class", visible=bool(looks.class_names))
