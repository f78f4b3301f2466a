"""Serve a model of your own from devices on this machine: run `python examples/serve.py`."""

import torch
from torch import nn

import awfulowl as owl


def main() -> None:
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
    example = torch.randn(1, 64)
    with owl.local_fleet(devices=4) as fleet:
        plan = owl.plan(model, example, devices=fleet)
        print(*plan.notes, sep="\n")
        scattered = fleet.scatter(model, plan)

        x = torch.randn(32, 64)
        with torch.no_grad():
            difference = (scattered(x) - model(x)).abs().max()
        print(f"largest difference from the local model: {difference:.1e}")

        fleet.kill("d2")
        with torch.no_grad():
            scattered(x)
        print("still right without d2:", fleet.statistics["requests_lost"], "requests lost")


if __name__ == "__main__":
    main()
