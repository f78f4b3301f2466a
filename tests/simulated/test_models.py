"""Scattered equals local, for every kind of module and model, through the whole system."""

import copy
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import awfulowl as owl
from awfulowl.errors import ClosedError, ModelError, PlanError, ScatteredError
from awfulowl.placement.options import Options, Shape
from awfulowl.placement.request import plan_model
from awfulowl.placement.survey import call_with
from tests.missing import need
from tests.simulated.memory_fleet import ACCELERATORS, MemoryFleet, memory_fleet


@pytest.fixture(scope="module", params=ACCELERATORS)
def fleet(request: pytest.FixtureRequest) -> Iterator[MemoryFleet]:
    with memory_fleet(3, accelerator=request.param) as opened:
        yield opened


def close(actual: object, expected: object) -> None:
    """Compare outputs up to the rounding of float32 sums in another order (inner lengths here are below 1000)."""
    torch.testing.assert_close(actual, expected, rtol=2e-4, atol=2e-4)


def scattered_equals_local(fleet: MemoryFleet, model: nn.Module, example: object, **options: object) -> nn.Module:
    model.eval()
    plan = owl.plan(model, example, devices=fleet, **options)  # type: ignore[arg-type]
    scattered = fleet.scatter(model, plan)
    before = fleet.statistics
    with torch.no_grad():
        close(call_with(scattered, example), call_with(model, example))
    require_from_devices(before, fleet.statistics)
    assert fleet.statistics["checks_failed"] == before["checks_failed"]
    fleet.release(scattered)
    return scattered


def require_from_devices(before: Mapping[str, int], after: Mapping[str, int], answers_bytes: int = 1) -> None:
    """Require that products came from devices and were checked: `requests` also counts what the owner did itself."""
    assert after["requests"] > before["requests"], "nothing was asked of the fleet"
    assert after["checks"] > before["checks"], "nothing that a device answered was checked"
    assert after["bytes_received"] - before["bytes_received"] >= answers_bytes, "devices did not send the products"
    assert after["kept"] == before["kept"] == 0, "the owner took a layer back"


SIZES = st.integers(1, 40)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_linear(fleet: MemoryFleet, data: st.DataObject) -> None:
    inputs, outputs = data.draw(SIZES), data.draw(SIZES)
    lead = data.draw(st.lists(st.integers(1, 4), max_size=2))
    model = nn.Linear(inputs, outputs, bias=data.draw(st.booleans()))
    scattered_equals_local(fleet, model, torch.randn(*lead, inputs), block=data.draw(st.integers(1, 16)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_convolutions(fleet: MemoryFleet, data: st.DataObject) -> None:
    dimensions = data.draw(st.sampled_from([1, 2]))
    groups = data.draw(st.sampled_from([1, 1, 2, 3, 6]))
    inputs, outputs = groups * data.draw(st.integers(1, 5)), groups * data.draw(st.integers(1, 5))
    size = [data.draw(st.integers(1, 3)) for _ in range(dimensions)]
    stride = [data.draw(st.integers(1, 2)) for _ in range(dimensions)]
    dilation = [data.draw(st.integers(1, 2)) for _ in range(dimensions)]
    padding = [data.draw(st.integers(0, 2)) for _ in range(dimensions)]
    kind: Any = nn.Conv1d if dimensions == 1 else nn.Conv2d
    model = kind(inputs, outputs, size, stride, padding, dilation, groups, bias=data.draw(st.booleans()))
    x = torch.randn(data.draw(st.integers(1, 3)), inputs, *[data.draw(st.integers(5, 9)) for _ in range(dimensions)])
    scattered_equals_local(fleet, model, x, block=data.draw(st.integers(1, 8)))


@pytest.mark.parametrize("shape", ["columns", "rows", "rectangles", "scattered"])
def test_every_shape_of_cells_serves_convolutions(fleet: MemoryFleet, shape: Shape) -> None:
    model = nn.Sequential(nn.Conv2d(6, 10, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(10, 8, 3)).eval()
    x = torch.randn(2, 6, 8, 8)
    options = Options(block=4, shape=shape, share=1.0, replicas=2)
    scattered = fleet.scatter(model, plan_model(model, x, fleet.devices, options))
    with torch.no_grad():
        close(scattered(x), model(x))
    fleet.release(scattered)


@pytest.mark.parametrize("mask", ["none", "padding", "causal"])
def test_transformer_encoder_layer_in_eval_mode(fleet: MemoryFleet, mask: str) -> None:
    """PyTorch's fused path would go past the modules: it must step aside."""
    model = nn.TransformerEncoderLayer(24, 4, 40, batch_first=True).eval()
    plan = owl.plan(model, torch.randn(2, 5, 24), devices=fleet, block=8)
    scattered = fleet.scatter(model, plan)
    x = torch.randn(3, 6, 24)
    masks: dict[str, dict[str, Any]] = {
        "none": {},
        "padding": {"src_key_padding_mask": torch.tensor([[False] * 4 + [True] * 2] * 3)},
        "causal": {"src_mask": nn.Transformer.generate_square_subsequent_mask(6), "is_causal": True},
    }
    arguments = masks[mask]
    for mode in (torch.no_grad, torch.inference_mode):
        before = fleet.statistics["requests"]
        with mode():
            close(scattered(x, **arguments), model(x, **arguments))
        # q, k and v in one request, then the output projection and two linear layers.
        assert fleet.statistics["requests"] - before == 4
    fleet.release(scattered)


def test_cross_attention(fleet: MemoryFleet) -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            y: Tensor = self.attention(x, memory, memory)[0]
            return y

    scattered_equals_local(fleet, Cross(), (torch.randn(2, 3, 16), torch.randn(2, 5, 16)), block=8)


class Shared(nn.Module):
    """A layer used twice, a head tied to an embedding, keyword arguments, and a dictionary as the result."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.mix = nn.Linear(16, 16)
        self.again = self.mix
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, *, scale: float = 1.0) -> dict[str, Tensor]:
        x = self.embedding(tokens) * scale
        x = torch.relu(self.mix(x))
        x = self.again(x) + x
        return {"logits": self.head(x), "hidden": x}


def test_shared_layers_tied_heads_keyword_arguments_and_dictionaries(fleet: MemoryFleet) -> None:
    model = Shared().eval()
    example = {"tokens": torch.randint(20, (2, 7)), "scale": 0.5}
    plan = owl.plan(model, example, devices=fleet, block=8)
    assert any("embedding.weight" in note for note in plan.notes)
    scattered = fleet.scatter(model, plan)
    assert isinstance(scattered, Shared)
    assert scattered.mix is scattered.again
    with torch.no_grad():
        close(call_with(scattered, example), call_with(model, example))
    assert torch.equal(scattered.embedding.weight, model.embedding.weight)
    fleet.release(scattered)


@pytest.mark.parametrize("x", [torch.randn(0, 12), torch.randn(0, 5, 12), torch.randn(2, 3, 12), torch.randn(12)])
def test_empty_and_deep_batches(fleet: MemoryFleet, x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    plan = owl.plan(model, torch.randn(2, 12), devices=fleet, block=4)
    scattered = fleet.scatter(model, plan)
    with torch.no_grad():
        close(scattered(x), model(x))
    fleet.release(scattered)


def test_a_layer_of_one_block(fleet: MemoryFleet) -> None:
    scattered_equals_local(fleet, nn.Linear(1, 1), torch.randn(4, 1))


def test_half_precision_weights(fleet: MemoryFleet) -> None:
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8)).to(torch.bfloat16).eval()
    x = torch.randn(4, 32, dtype=torch.bfloat16)
    scattered = fleet.scatter(model, owl.plan(model, x, devices=fleet, block=8))
    with torch.no_grad():
        y = scattered(x)
    assert y.dtype is torch.bfloat16
    # bfloat16 keeps 8 bits: one unit in the last place of sums that the original rounds in between.
    torch.testing.assert_close(y.float(), model.float()(x.float()), rtol=2e-2, atol=2e-2)
    fleet.release(scattered)


def test_hugging_face_models(fleet: MemoryFleet) -> None:
    transformers = need("transformers")
    torch.manual_seed(0)
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=16)
    ).eval()
    tokens = torch.randint(50, (2, 9))
    plan = owl.plan(gpt2, {"input_ids": tokens}, devices=fleet, block=8)
    scattered: Any = fleet.scatter(gpt2, plan)
    with torch.no_grad():
        close(scattered(input_ids=tokens).logits, gpt2(input_ids=tokens).logits)
        generated = scattered.generate(tokens[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert torch.equal(generated, gpt2.generate(tokens[:1], max_new_tokens=4, do_sample=False, pad_token_id=0))
    fleet.release(scattered)


def test_replaced_modules_never_compute_at_the_owner(fleet: MemoryFleet) -> None:
    """Every product of a pass is answered by devices and checked; the weights here hold no numbers, and the caller
    multiplies nothing."""
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)).eval()
    x = torch.randn(2, 4, 5, 5)
    scattered = fleet.scatter(model, owl.plan(model, x, devices=fleet, block=8))
    called: list[str] = []
    owner = threading.get_ident()

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if threading.get_ident() == owner:
                called.append(getattr(function, "__name__", str(function)))
            return function(*args, **(kwargs or {}))

    before = fleet.statistics
    with torch.no_grad(), Watch():
        scattered(x)
    after = fleet.statistics
    require_from_devices(before, after, answers_bytes=4 * 2 * (8 * 3 * 3 + 10))
    assert after["requests"] - before["requests"] == 2
    assert after["checks"] - before["checks"] == 2 * 2, "every sample of every product is checked"
    products = {"linear", "conv2d", "matmul", "mm", "addmm", "bmm", "einsum", "__matmul__", "convolution"}
    assert not products & set(called)
    weights = {name: at for name, at in storages(scattered).items() if name.endswith("weight")}
    assert set(weights.values()) == {"meta"}
    fleet.release(scattered)


def storages(model: nn.Module) -> dict[str, str]:
    """Return where the numbers of each parameter really are."""
    with torch._C.DisableTorchFunctionSubclass():
        return {name: value.untyped_storage().device.type for name, value in model.named_parameters()}


def test_gather_returns_the_original_state_dict(fleet: MemoryFleet) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 12, 3, groups=3), nn.Flatten(), nn.Linear(12, 5)
    ).eval()
    x = torch.randn(2, 3, 5, 5)
    scattered = fleet.scatter(model, owl.plan(model, x, devices=fleet, block=4))
    state = fleet.gather(scattered)
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name
    kept = scattered.state_dict()
    assert set(kept) == {name for name in state if not (name.endswith("weight") and not name.startswith("1."))}
    fleet.release(scattered)


def test_gather_of_attention(fleet: MemoryFleet) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    x = torch.randn(1, 3, 8)
    scattered = fleet.scatter(model, owl.plan(model, x, devices=fleet, block=4))
    state = fleet.gather(scattered)
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name
    fleet.release(scattered)


def test_the_original_is_untouched_and_kept_tensors_are_shared(fleet: MemoryFleet) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2)).eval()
    before = {name: (id(value), value.clone()) for name, value in model.named_parameters()}
    x = torch.randn(2, 8)
    scattered = fleet.scatter(model, owl.plan(model, x, devices=fleet, block=4))
    with torch.no_grad():
        scattered(x)
    for name in ("1.weight", "0.bias"):
        assert scattered.get_parameter(name).data_ptr() == model.get_parameter(name).data_ptr()
    for name, value in model.named_parameters():
        assert id(value) == before[name][0]
        assert torch.equal(value, before[name][1])
        assert value.requires_grad
    fleet.release(scattered)


def test_the_same_object_changed_in_place_is_another_input(fleet: MemoryFleet) -> None:
    """q(x), then x changes, then k(x): the rows that were asked for together must not be used."""

    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(8, 8)
            self.k = nn.Linear(8, 8)
            self.change = False

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            q = self.q(x)
            if self.change:
                x.mul_(2)
            return torch.cat([q, self.k(x)], dim=1)

    model = Changing().eval()
    x = torch.randn(2, 8)
    plan = owl.plan(model, x, devices=fleet, block=4)
    assert len(plan.panels) == 1
    scattered = fleet.scatter(model, plan)
    model.change = True
    vars(scattered)["change"] = True
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for _ in range(6):
                close(scattered(x), model(x))
    fleet.release(scattered)


def test_many_threads_at_once(fleet: MemoryFleet) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    scattered = fleet.scatter(model, owl.plan(model, torch.randn(1, 16), devices=fleet, block=4))
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                x = torch.randn(3, 16)
                with torch.no_grad():
                    close(scattered(x), model(x))
        except BaseException as error:  # noqa: BLE001  whatever it is, the test must see it
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    fleet.release(scattered)


@pytest.mark.filterwarnings("ignore:.*jit.script.* is deprecated")  # PyTorch's own, where it goes forward
def test_uses_that_are_refused(fleet: MemoryFleet) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)).eval()
    x = torch.randn(2, 8)
    scattered = fleet.scatter(model, owl.plan(model, x, devices=fleet, block=4))
    with pytest.raises(ScatteredError, match="requires a gradient"):
        scattered(x.clone().requires_grad_())
    with pytest.raises(ScatteredError, match="no derivative goes forward"):
        torch.func.jvp(scattered, (x,), (x,))
    with forward_ad.dual_level():
        with torch.no_grad(), pytest.raises(ScatteredError, match="no derivative goes forward"):
            scattered(forward_ad.make_dual(x, x))  # type: ignore[no-untyped-call]
        close(scattered(x), model(x).detach())
    misuses: list[Callable[[Any], object]] = [
        copy.deepcopy,
        pickle.dumps,
        lambda m: m[0].weight + 1,
        lambda m: torch.export.export(m, (x,)),
        lambda m: make_fx(m)(x),
    ]
    for misuse in misuses:
        with pytest.raises(Exception, match="devices"):
            misuse(scattered)
    close(torch.compile(scattered, backend="eager")(x), model(x).detach())
    fleet.release(scattered)
    with pytest.raises(ScatteredError, match="not scattered by this fleet"):
        fleet.gather(scattered)


def test_plans_of_other_models_and_fleets_are_refused(fleet: MemoryFleet) -> None:
    model, other = nn.Linear(8, 8), nn.Linear(8, 9)
    with pytest.raises(PlanError, match="another model"):
        fleet.scatter(other, owl.plan(model, devices=fleet, block=4))
    with pytest.raises(PlanError, match="d9"):
        fleet.scatter(model, owl.plan(model, devices=["d1", "d9"], block=4))


def test_weights_that_change_after_the_plan_are_noticed_when_they_are_needed_again(fleet: MemoryFleet) -> None:
    model = nn.Linear(8, 8).eval()
    scattered = fleet.scatter(model, owl.plan(model, devices=fleet, block=4, replicas=1))
    with torch.no_grad():
        model.weight += 1
    deployment, _ = fleet._scattering(scattered)
    with pytest.raises(ModelError, match="changed since"):
        deployment.matrices(0, 0, deployment.panels[0].cells[0].rows, [0])
    fleet.release(scattered)


def test_nothing_to_scatter() -> None:
    with pytest.raises(ModelError, match="nothing to scatter"):
        owl.plan(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), devices=2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad: float) -> None:
    model = nn.Linear(4, 4)
    with torch.no_grad():
        model.weight[1, 2] = bad
    with pytest.raises(ModelError, match="weight"):
        owl.plan(model, devices=2)


def test_a_closed_fleet_says_so() -> None:
    with memory_fleet(2) as opened:
        model = nn.Linear(8, 8).eval()
        scattered = opened.scatter(model, owl.plan(model, devices=opened, block=4))
        assert opened.held_blocks > 0
    with pytest.raises(ClosedError), torch.no_grad():
        scattered(torch.randn(1, 8))
    assert opened.held_blocks == 0
    opened.close()
