"""One table or figure of the paper: python reproduce.py table1 --dataset cifar10 --budget 120 [--key value ...]

Trains what is missing, goes on with what is half done, measures, and writes results/<name>_<dataset>/{table.md,
data.json,figure.png}. Options that are not listed here go to train_vae.py, for example --dataset_path or
--mixed_precision bf16.
"""

import argparse
import json
import shlex
from pathlib import Path

import numpy as np
import torch

import evaluate
from fq_ldm.data import load_images, sample_images
from fq_ldm.evaluation import load_pair_metrics
from fq_ldm.models import load_vae
from fq_ldm.options import LDM_CONFIGS, VAE_CONFIGS, DataConfig, EvaluationConfig, UserError, parse_config, run_script
from reproduction.experiments import EXPERIMENTS, FQ, Experiment
from reproduction.figures import bars, curves, image_rows
from reproduction.runs import ROOT, Plan, codec_file, efficiency, finish, paints, read_metrics, train_vae
from reproduction.tables import machine, means, save_table

SHOWN_IMAGES = 12  # in a row of reconstructions
NETWORK_OPTIONS = ("feature_extractor", "feature_extractor_weights", "feature_extractor_module", "lpips_weights")
OURS = (FQ.config, "ablation/I", "channels/interleaved_D2", "extractors/fft")


def main(argv: list[str]) -> None:
    options, forwarded = parse_options(argv)
    experiment = select_rows(EXPERIMENTS[options.name], options.only)
    plan = Plan(options.dataset, options.budget, options.seeds, Path(options.runs_dir), forwarded)
    folder = Path(options.output_dir) / f"{options.name}_{options.dataset}"
    # Where the images lie on this machine is of no use to a reader.
    shown = [f"path/to/{Path(word).name}" if word == options.dataset_path else word for word in argv]
    command = f"python reproduce.py {shlex.join(shown)}"
    data = data_config(plan, experiment)
    network_options = {name: getattr(options, name) for name in NETWORK_OPTIONS}
    load_pair_metrics(EvaluationConfig(**network_options), options.metrics, torch.device("cpu"))

    if options.name == "fig6":
        return generated_images(folder, experiment, plan, options, command)
    measured = {row.config: [] for row in experiment.rows}
    for seed in plan.seeds:  # outermost: a run that is cut short has whole tables of fewer seeds
        for row in experiment.rows:
            run_folder = train_vae(plan, row.config, seed)
            metrics = read_metrics(run_folder) | measure(run_folder, plan, row.config, options, experiment.evaluation)
            if options.name == "table4":
                metrics |= efficiency(run_folder, len(load_images(data)[0]))
            measured[row.config].append(metrics)
    print(save_table(folder, options.name, experiment, plan, measured, command))
    draw(folder, options.name, experiment, plan, measured, data)


def parse_options(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of this script, and the flags that go on to `train_vae.py`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=EXPERIMENTS, help="table or figure of the paper")
    names = sorted(path.parent.name for path in (ROOT / "configs").glob("*/vae.yaml"))
    datasets = [name for name in names if not paints(codec_file(name))]
    parser.add_argument("--dataset", choices=datasets, required=True, help="folder under configs/")
    parser.add_argument("--dataset_path", help="where its images are, instead of the Hub: as train_vae.py's --dataset")
    parser.add_argument("--budget", type=float, required=True, help="seconds of training of each model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", metavar="ROW", help="only the rows with these configurations, e.g. sq_vae")
    parser.add_argument(
        "--metrics",
        nargs="*",
        choices=["lpips", "rfid"],
        default=["lpips", "rfid"],
        help="measured beside MSE, PSNR, SSIM and the codebook; empty where their weights cannot be had",
    )
    parser.add_argument("--feature_extractor", default="inception-v3-compat", help="of rFID, as in evaluate.py")
    parser.add_argument("--feature_extractor_weights", help="file with its weights")
    parser.add_argument("--feature_extractor_module", help="module that registers it")
    parser.add_argument("--lpips_weights", help="file with torchvision's VGG16 weights")
    parser.add_argument("--ldm_options", default="", help="fig6: flags of train_ldm.py, in one string")
    parser.add_argument("--output_dir", default="results")
    parser.add_argument("--runs_dir", default="runs/reproduce", help="where the models are trained")
    options, forwarded = parser.parse_known_args(argv)
    if options.dataset_path:
        forwarded += ["--dataset", options.dataset_path]
    return options, forwarded


def select_rows(experiment: Experiment, only: list[str] | None) -> Experiment:
    """The experiment with these rows alone.

    Raises:
        UserError: for a name that is no row.
    """
    if only is None:
        return experiment
    names = {row.config.split("/")[-1]: row for row in experiment.rows}
    for name in only:
        if name not in names:
            raise UserError(f"only: {name} is no row; there are {', '.join(names)}")
    rows = tuple(row for name, row in names.items() if name in only)
    return Experiment(experiment.caption, rows, experiment.evaluation, experiment.notes)


def data_config(plan: Plan, experiment: Experiment) -> DataConfig:
    """How the runs read their images; all options are checked before the first of them starts.

    Raises:
        UserError: for a wrong option.
    """
    for row in experiment.rows:
        argv = ["--config", *plan.config_files(row.config), *plan.options]
        data = parse_config(argv, *VAE_CONFIGS, required=("dataset", "output_dir"))[0]
    return data


def measure(folder: Path, plan: Plan, config: str, options: argparse.Namespace, extra: tuple[str, ...]) -> dict:
    """What `evaluate.py` measures on a run beside its training's own metrics: numbers and codebook arrays."""
    metrics = [*options.metrics, *extra]
    if not metrics:
        return {}
    report = folder / "evaluation" / "-".join(metrics) / "evaluation.json"
    wanted = {name: getattr(options, name) for name in NETWORK_OPTIONS}
    if not report.is_file() or wanted.items() - json.loads(report.read_text())["options"].items():
        flags = ["--model", str(folder), "--output_dir", str(report.parent), "--metrics", *metrics]
        for name, value in wanted.items():
            flags += [f"--{name}", value or "null"]
        evaluate.main(data_flags(plan, config) + flags)
    values = json.loads(report.read_text())
    return {k: v for k, v in values["metrics"].items() if k != "images"} | values["codebook"]


def data_flags(plan: Plan, config: str) -> list[str]:
    """The flags that describe the images of a run, for scripts that know no others."""
    argv = ["--config", *plan.config_files(config), *plan.options]
    data = parse_config(argv, *VAE_CONFIGS)[0]
    flags = []
    for name, value in vars(data).items():
        flags += [f"--{name}", *map(str, value if isinstance(value, list) else ["null" if value is None else value])]
    return flags


def draw(folder: Path, name: str, experiment: Experiment, plan: Plan, measured: dict, data: DataConfig) -> None:
    """Write `figure.png`."""
    titles = {row.config: row.title for row in experiment.rows}
    path = folder / "figure.png"
    if name == "fig3":
        series = {titles[c]: np.asarray(runs[0]["sorted_usage"]) for c, runs in measured.items()}
        curves(path, series, "codebook entry, most used first", "share of the tokens")
    elif name == "fig4":
        series = {titles[c]: np.asarray(runs[0]["unit_information"]) for c, runs in measured.items()}
        curves(path, series, "codebook entry", "rise in MSE without it", points=True)
    elif name == "fig5":
        images = sample_images(load_images(data)[1], SHOWN_IMAGES, seed=0)
        rows = {"images": (images + 1) / 2}
        with torch.no_grad():
            for config, title in titles.items():
                model = load_vae(str(plan.run_folder(config, plan.seeds[0])))
                rows[f"{title}, PSNR {measured[config][0]['psnr']:.2f} dB"] = (model(images).sample + 1) / 2
        image_rows(path, rows)
    else:
        results = {config: means(runs) for config, runs in measured.items()}
        bars(
            path,
            [titles[c] for c in results],
            [mean["nmse"] for mean, _ in results.values()],
            [spread["nmse"] for _, spread in results.values()],
            "mean squared error over the variance of the pixels, held-out images",
            [c in OURS for c in results],
        )


def generated_images(
    folder: Path, experiment: Experiment, plan: Plan, options: argparse.Namespace, command: str
) -> None:
    """Fig. 6: the same diffusion training on the latents of each model; their samples side by side."""
    from fq_ldm import FQLDMPipeline

    rows, losses = {}, {}
    for row in experiment.rows:
        vae = train_vae(plan, row.config, plan.seeds[0])
        pipeline_folder = vae / "pipeline"
        files = [
            str(ROOT / "configs" / name)
            for name in (f"{plan.dataset}/ldm.yaml", "classes/none.yaml", "division/paper.yaml")
        ]
        flags = ["--config", *files, *data_flags(plan, row.config)]
        flags += ["--vae", str(vae), "--output_dir", str(pipeline_folder), *shlex.split(options.ldm_options)]
        finish("train_ldm.py", LDM_CONFIGS, pipeline_folder, flags)
        losses[row.title] = read_metrics(pipeline_folder)
        pipeline = FQLDMPipeline.from_pretrained(pipeline_folder)
        seeds = [torch.Generator().manual_seed(i) for i in range(SHOWN_IMAGES)]
        steps = pipeline.scheduler.config.num_train_timesteps  # all of them, as in the paper
        rows[row.title] = pipeline(SHOWN_IMAGES, steps, generator=seeds, output_type="pt").images
    folder.mkdir(parents=True, exist_ok=True)
    image_rows(folder / "figure.png", rows)
    data = {"dataset": plan.dataset, "budget_seconds": plan.budget, "machine": machine(), "command": command}
    (folder / "data.json").write_text(json.dumps({**data, "metrics": losses}, indent=1) + "\n")
    lines = [f"# {experiment.caption}, {plan.dataset}, on {machine()}", "", "```bash", command, "```", ""]
    (folder / "table.md").write_text("\n".join(lines))


if __name__ == "__main__":
    run_script(main)
