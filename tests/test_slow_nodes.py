"""Several machines, as groups of processes on one: each has a launcher of its own, and they meet at a port.

As a script: `train_vae.py` that fails where the trained models of its processes differ.
"""

import json
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch
from distributed_worker import assert_same_everywhere
from safetensors.torch import load_file
from test_scripts import LDM_OPTIONS, ROOT, VAE_OPTIONS, to_flags
from test_slow_processes import launch
from test_slow_resume import assert_same_run

from fq_ldm import train_vae
from fq_ldm.options import run_script

pytestmark = pytest.mark.slow
VAE_WEIGHTS, UNET_WEIGHTS = "diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors"
THIS = "tests/test_slow_nodes.py"
PATIENCE = 150  # seconds
# Torch 2.14 keeps one store over all restarts; processes that were started again find the addresses of the dead in it.
NEW_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


class Nodes:
    """Two launchers with one process each, that meet at a port of their own.

    Args:
        folder: to work in; `node0.log` and `node1.log` take what the processes print.
    """

    def __init__(self, folder, script, *arguments, max_restarts=0):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        for log in folder.glob("node*.log"):  # of an earlier run
            log.unlink()
        meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{self.port}", "--local_addr", "localhost"]
        nodes = ["--nnodes", "2", "--nproc_per_node", "1", "--max_restarts", str(max_restarts)]
        launcher = [sys.executable, "-m", "torch.distributed.run", *nodes, *meeting]
        self.command = [*launcher, str(ROOT / script), *map(str, arguments)]
        self.launchers = [self.start(0)]
        self.wait_for(self._is_host)  # the first, so that the second can die alone
        self.launchers.append(self.start(1))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for node, launcher in enumerate(self.launchers):
            if launcher.poll() is None:
                self.kill(node)

    def start(self, node):
        """A launcher, and with it its process."""
        environment = os.environ | NEW_STORE | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
        with (self.folder / f"node{node}.log").open("a") as log:
            return subprocess.Popen(self.command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def text(self):
        """What all processes have printed."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("node*.log")))

    def _is_host(self):
        with socket.socket() as caller:
            return caller.connect_ex(("localhost", self.port)) == 0

    def kill_workers(self, node):
        """As the system does when memory is short: the launcher lives."""
        (worker,) = psutil.Process(self.launchers[node].pid).children()
        worker.kill()

    def kill(self, node):
        """As a power cut does."""
        workers = psutil.Process(self.launchers[node].pid).children(recursive=True)
        self.launchers[node].kill()
        self.launchers[node].wait()
        for worker in workers:
            worker.kill()

    def wait_for(self, condition):
        """Until something is so, while both launchers live."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end and all(n.poll() is None for n in self.launchers), self.text()[-6000:]
            time.sleep(0.02)

    def finish(self):
        """Wait for the end of both; what they have printed."""
        for launcher in self.launchers:
            assert launcher.wait(PATIENCE) == 0, self.text()[-6000:]
        return self.text()


def run_nodes(folder, script, options):
    folder.mkdir(exist_ok=True)
    with Nodes(folder, script, *to_flags(options)) as nodes:
        return nodes.finish()


def saved_step(folder):
    """Of the newest checkpoint; 0 without one."""
    return max((int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*")), default=0)


def assert_same_weights(first, second):
    first, second = load_file(first), load_file(second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(second[name], value), name


def test_two_machines_of_one_process_train_like_one_of_two(image_folder, tmp_path):
    """Both scripts, bit for bit, and nothing is written or said twice."""
    options = dict(dataset=image_folder, output_dir="vae", max_train_steps=5, **VAE_OPTIONS)
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    launch(2, "train_vae.py", one, *to_flags(options))
    printed = run_nodes(two, THIS, options)
    assert printed.count("models agree") == 2
    assert printed.count("num_vq_embeddings: 16") == 1 and printed.count("validation: images") == 1
    assert_same_weights(one / "vae" / VAE_WEIGHTS, two / "vae" / VAE_WEIGHTS)

    options = dict(dataset=image_folder, vae=two / "vae", output_dir="ldm", max_train_steps=5, **LDM_OPTIONS)
    launch(2, "train_ldm.py", one, *to_flags(options))
    printed = run_nodes(two, "train_ldm.py", options)
    assert printed.count("unet_layers_per_block: 1") == 1 and printed.count("validation: ") == 1
    assert_same_weights(one / "ldm" / UNET_WEIGHTS, two / "ldm" / UNET_WEIGHTS)
    for kind in ("vae", "ldm"):
        metrics = json.loads((two / kind / "metrics.json").read_text())
        assert metrics["images_seen"] == 5 * 2 * 8  # steps, processes, batch
        names = []
        for folder in (one / kind, two / kind):
            files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
            names.append(sorted(name for name in files if "tfevents" not in name))
            assert len(files) == len(names[-1]) + 1 and not any("partial" in name for name in files)
        assert names[0] == names[1]


def die_and_go_on(nodes, folder, kill):
    """Let something die some checkpoints from now; comes back when training goes on."""
    lines = nodes.text().count("resuming from")
    enough = saved_step(folder) + 20
    nodes.wait_for(lambda: saved_step(folder) >= enough)
    kill()
    nodes.wait_for(lambda: nodes.text().count("resuming from") == lines + 2)  # one line for each machine


def test_processes_that_are_killed_rejoin(image_folder, tmp_path):
    """The second machine loses its process, and then the first: the run ends in the same bits all the same."""
    options = dict(dataset=image_folder, random_flip=True, checkpointing_steps=5, max_train_steps=150, **VAE_OPTIONS)
    launch(2, THIS, tmp_path, *to_flags(options | dict(output_dir="whole")))
    with Nodes(tmp_path, THIS, *to_flags(options | dict(output_dir="parts")), max_restarts=3) as nodes:
        for node in (1, 0):
            die_and_go_on(nodes, tmp_path / "parts", lambda node=node: nodes.kill_workers(node))
        printed = nodes.finish()
    assert printed.count("resuming from") == 4 and printed.count("models agree") == 2
    assert_same_run(tmp_path / "whole", tmp_path / "parts", VAE_WEIGHTS)


def test_a_machine_that_dies_is_replaced(image_folder, tmp_path):
    """Launcher and process of the second machine die together, and another machine takes the place."""
    vae = dict(dataset=image_folder, output_dir="vae", max_train_steps=1, **VAE_OPTIONS)
    launch(1, "train_vae.py", tmp_path, *to_flags(vae))
    options = dict(dataset=image_folder, vae=tmp_path / "vae", random_flip=True, unet_dropout=0.1,
                   checkpointing_steps=5, max_train_steps=150, **LDM_OPTIONS)  # fmt: skip
    launch(2, "train_ldm.py", tmp_path, *to_flags(options | dict(output_dir="whole")))
    script = ("train_ldm.py", *to_flags(options | dict(output_dir="parts")))
    with Nodes(tmp_path, *script, max_restarts=3) as nodes:

        def replace():
            nodes.kill(1)
            nodes.launchers[1] = nodes.start(1)

        die_and_go_on(nodes, tmp_path / "parts", replace)
        printed = nodes.finish()
    assert printed.count("validation: ") == 1
    assert_same_run(tmp_path / "whole", tmp_path / "parts", UNET_WEIGHTS)


def train_and_compare() -> None:
    """`train_vae.py`, whose processes compare their models at the end."""
    measure = train_vae.measure

    def compare_and_measure(model, *arguments):
        assert_same_everywhere(model, "at the end")
        print("models agree", flush=True)
        return measure(model, *arguments)

    train_vae.measure = compare_and_measure
    run_script(train_vae.main)


if __name__ == "__main__":
    train_and_compare()
