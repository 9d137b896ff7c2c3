"""The tables and figures of the FQ-VAE paper: which runs each is made of, and what the paper gives for them.

A run is a dataset's configuration with one more file on top. The paper's tables are pictures; the numbers here are
those that its text gives.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One trained model of a table or figure.

    Attributes:
        title: how the table names it.
        config: file under `configs/`, without its suffix.
    """

    title: str
    config: str


@dataclass(frozen=True)
class Experiment:
    """A table or figure.

    Attributes:
        caption: one line above it.
        rows: its models.
        evaluation: what `evaluate.py` measures on each model beside what training has measured already.
        notes: lines below it.
    """

    caption: str
    rows: tuple[Row, ...]
    evaluation: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)


FQ = Row("FQ-VAE (default: learnt bank)", "methods/fq_vae")
FQ_PAPER = Row("FQ-VAE as printed, filters start as a partition", "methods/fq_vae_paper")
FQ_ALIKE = Row("FQ-VAE as printed, filters start alike", "methods/fq_vae_paper_alike")
VQ = Row("VQ-VAE", "methods/vq_vae")
EMA = Row("VQ-VAE, running means and revival", "methods/vq_vae_ema")
HQA = Row("HQA (HVQ-VAE)", "methods/hqa")
SQ = Row("SQ-VAE", "methods/sq_vae")
CVQ = Row("CVQ-VAE, closest anchors", "methods/cvq_vae_closest")
CVQ_RANDOM = Row("CVQ-VAE, random anchors", "methods/cvq_vae_random")
CVQ_PROBABLE = Row("CVQ-VAE, probabilistic anchors", "methods/cvq_vae_probabilistic")
FSQ = Row("FSQ", "methods/fsq")
RESIDUAL = Row("Residual VQ", "methods/residual")
SIMVQ = Row("SimVQ", "methods/simvq")

COMMON = (
    "Every method has the same convolutional trunk, the same start from data (colour transform, k-means or its "
    "counterpart), the same batches and the same number of seconds of training.",
    "SSIM: uniform 11x11 window, data range 1, as CVQ-VAE measures it. MSE in [0, 1].",
)
LITERAL = (
    "As printed: dynamic filters (equations 3-5) with the readings that fq_ldm/quantization/filters.py lists, "
    "D = 2 latent channels, beta 0.25.",
)

EXPERIMENTS = {
    "table1": Experiment(
        "Reconstruction (Table 1)",
        (VQ, EMA, HQA, SQ, CVQ, CVQ_RANDOM, CVQ_PROBABLE, FSQ, RESIDUAL, SIMVQ, FQ_ALIKE, FQ_PAPER, FQ),
        notes=(
            *COMMON,
            *LITERAL,
            "FSQ, residual VQ and SimVQ are not in the paper. Residual VQ has U / 4 cells of 4 stages.",
        ),
    ),
    "table2": Experiment(
        "Ablation (Table 2)",
        (
            Row("A: VQ-VAE", "ablation/A"),
            Row("B: A + frequency quantization", "ablation/B"),
            Row("C: A + anchors by usage", "ablation/C"),
            Row("D: C + dependency", "ablation/D"),
            Row("E: A + graph module", "ablation/E"),
            Row("F: B + D", "ablation/F"),
            Row("G: D + E", "ablation/G"),
            Row("H: B + E", "ablation/H"),
            Row("I: all", "ablation/I"),
            Row("I with fixed combs", "ablation/I_combs"),
            Row("B as printed", "ablation/B_paper"),
            Row("F as printed", "ablation/F_paper"),
            Row("H as printed", "ablation/H_paper"),
            Row("I as printed", "ablation/I_paper"),
        ),
        notes=(
            *COMMON,
            "B, F, H and I have the learnt bank, or fixed combs, and beta 0.5; the others beta 0.25.",
            *LITERAL,
        ),
    ),
    "table3": Experiment(
        "Latent channels D and filters N, U = D x N (Table 3)",
        tuple(Row(f"as printed, D = {d}, N = {64 // d}", f"channels/paper_D{d}") for d in (1, 2, 4, 8))
        + tuple(Row(f"interleaved, D = {d}", f"channels/interleaved_D{d}") for d in (1, 2, 4, 8)),
        notes=(*COMMON, "With fewer channels than colours, the weakest principal colour is left to the convolutions."),
    ),
    "table4": Experiment(
        "Feature extractors (Table 4)",
        (
            Row("convolution", "extractors/convolution"),
            Row("transformer", "extractors/transformer"),
            Row("2D FFT", "extractors/fft"),
        ),
        notes=(
            *COMMON,
            "The three differ in the tokens alone: cells of a grid, cells with self-attention before and after the "
            "codebook, filters on the spectrum.",
        ),
    ),
    "fig3": Experiment("Use of the codebook, sorted (Fig. 3)", (VQ, CVQ, FQ), ("codebook",)),
    "fig4": Experiment(
        "Unit information: rise in MSE when an entry is taken out (Fig. 4)", (VQ, SQ, CVQ, FQ), ("unit_information",)
    ),
    "fig5": Experiment("Reconstructions (Fig. 5)", (VQ, HQA, SQ, CVQ, FQ)),
    "fig6": Experiment("Generated images (Fig. 6)", (CVQ, FQ)),
}

# (experiment, dataset) -> config -> metric -> what the paper's text gives
PAPER = {
    ("table1", "cifar10"): {
        FQ.config: {"ssim": 0.9012, "lpips": 0.1597, "rfid": 18.88},
        CVQ.config: {"ssim": 0.8978, "lpips": 0.1973, "rfid": 24.89},
        VQ.config: {"ssim": 0.859, "lpips": 0.251, "rfid": 40.0},
    },
    ("table2", "cifar10"): {"ablation/I": {"ssim": 0.9012, "lpips": 0.1597, "rfid": 18.88}},
    ("table2", "celeba64"): {
        "ablation/F": {"ssim": 0.9492, "lpips": 0.0854, "rfid": 4.62},
        "ablation/B": {"ssim": 0.9468, "lpips": 0.0902, "rfid": 5.31},
        "ablation/D": {"ssim": 0.9487, "lpips": 0.0913, "rfid": 5.44},
    },
    ("table3", "cifar10"): {"channels/paper_D2": {"ssim": 0.9012, "rfid": 18.88}},
    ("table3", "mnist"): {"channels/paper_D1": {"ssim": 0.9875}},
    ("table4", "cifar10"): {"extractors/fft": {"rfid": 18.88, "seconds_per_epoch": 3.81, "images_per_second": 369.48}},
    ("table4", "lsun_church"): {
        "extractors/fft": {"peak_memory_mb": 456.94},
        "extractors/transformer": {"peak_memory_mb": 10087.05},
    },
}
