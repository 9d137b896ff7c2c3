"""Measure an FQ-VAE or a pipeline: python -m fq_ldm.evaluate --model runs/mnist/vae --dataset ... --output_dir ..."""

import shlex
from pathlib import Path

from .data import BAD_IMAGES_FILE, load_images
from .distributed import processes
from .evaluation import (
    PROTOCOL,
    check_images,
    check_output,
    choose_images,
    chosen_metrics,
    evaluate_pipeline,
    evaluate_vae,
    load_model,
    save_report,
)
from .options import DataConfig, EvaluationConfig, parse_config, resolved, run_script
from .pipelines import FQLDMPipeline


def main(argv: list[str]) -> None:
    data, config = parse_config(argv, DataConfig, EvaluationConfig, required=("model", "dataset", "output_dir"))
    model = load_model(config)
    is_pipeline = isinstance(model, FQLDMPipeline)
    metrics = chosen_metrics(config, is_pipeline, data.label_column is not None)
    check_images(model.vqvae if is_pipeline else model, data, config.model)
    folder = Path(config.output_dir)
    check_output(folder)
    train_images, validation_images = load_images(data, folder / BAD_IMAGES_FILE)
    images = choose_images(train_images if config.reference == "train" else validation_images, config)

    if is_pipeline:
        results, arrays = evaluate_pipeline(model, images, train_images, config, metrics, data.random_flip)
    else:
        results, arrays = evaluate_vae(model, images, config, metrics)

    held_out = data.validation_split or f"images held out from {data.train_split}"
    report = {
        "model": config.model,
        "dataset": data.dataset,
        "split": data.train_split if config.reference == "train" else held_out,
        "image_size": f"{data.channels}x{data.size[0]}x{data.size[1]}",
        "feature_extractor": config.feature_extractor,
        "protocol": {name: text for name, text in PROTOCOL.items() if name in results},
        "metrics": results,
        "options": resolved(data, config),
        "command": f"python evaluate.py {shlex.join(argv)}",
    }
    if processes().is_main_process:
        print(save_report(folder, report, arrays))
    processes().destroy_process_group()


if __name__ == "__main__":
    run_script(main)
