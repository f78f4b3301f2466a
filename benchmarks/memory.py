"""What scattering a model costs the owner in memory, beyond the model itself.

    python benchmarks/memory.py [--quick] [--json FILE]

`secrets` are the check vectors, as they count themselves. `resident` is the growth of the owner's resident memory from
before the plan to after the first batches, with devices in processes of their own; the model's weights are touched
before, so that they are no part of it, and a small model was served before, so that code and libraries are none.
"""

import argparse
import gc
import json
import platform
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

import awfulowl as owl
from awfulowl.models.mlp import Mlp
from awfulowl.models.vgg import Vgg16
from awfulowl.placement.summary import summarise
from awfulowl.verification import compiled


def measure(name: str, model: nn.Module, x: Tensor) -> dict[str, Any]:
    process = psutil.Process()
    with owl.local_fleet(devices=2) as fleet, torch.inference_mode():
        model.eval()(x)
        gc.collect()
        before = process.memory_info().rss
        plan = owl.plan(model, x[:1], devices=fleet, block=256, replicas=1)
        scattered = fleet.scatter(model, plan)
        for _ in range(3):
            scattered(x)
        gc.collect()
        grown = process.memory_info().rss - before
        deployment, _ = fleet._scattering(scattered)  # noqa: SLF001
        secrets = sum(check.memory_bytes for check in deployment.checks)
    weights = 4 * summarise(plan).parameters
    return {
        "model": name,
        "scattered_weight_bytes": weights,
        "secret_bytes": secrets,
        "secret_share": secrets / weights,
        "resident_growth_bytes": grown,
        "resident_share": grown / weights,
    }


def loading_bytes() -> int:
    """Return what the libraries of compiled checks take, once a process and whatever the model."""
    process = psutil.Process()
    before = process.memory_info().rss
    compiled.prepare()
    return int(process.memory_info().rss - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the MLP only")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - is the standard output")
    options = parser.parse_args()
    torch.manual_seed(0)
    measure("first", Mlp([64, 64]), torch.randn(8, 64))  # what code and libraries take, whatever the model
    loading = loading_bytes()
    print(f"libraries of compiled checks: {loading / 1e6:.1f} MB, whatever the model")
    rows = [measure("mlp", Mlp([4096, 4096, 4096, 10]), torch.randn(8, 4096))]
    if not options.quick:
        rows.append(measure("vgg16", Vgg16(100), torch.randn(8, 3, 32, 32)))
    for row in rows:
        print(
            f"{row['model']:8} weights {row['scattered_weight_bytes'] / 1e6:7.1f} MB  "
            f"secrets {row['secret_bytes'] / 1e6:6.2f} MB ({row['secret_share']:.2%})  "
            f"resident {row['resident_growth_bytes'] / 1e6:+7.1f} MB ({row['resident_share']:.1%})"
        )
    if options.json:
        results = {
            "benchmark": "memory",
            "seed": 0,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "loading_bytes": loading,
            "rows": rows,
        }
        text = json.dumps(results, indent=2) + "\n"
        if options.json == "-":
            print(text, end="")
        else:
            Path(options.json).write_text(text)


if __name__ == "__main__":
    main()
