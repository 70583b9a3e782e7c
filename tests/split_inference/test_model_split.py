"""Splitting: every cut is exact, the right cuts are found, and their costs and names are true."""

import pytest
import torch

from split_inference.embedded.resnet20 import ResNet20
from split_inference.errors import ModelExportError, UnknownSplitPointError
from split_inference.exactness import verify
from split_inference.model_split import SplittableModel, export_model, split
from split_inference.weights import fill_with_random_weights
from tests.split_inference.models import Branches, ChannelsLast, Recurrent, Sizes, Windows, seeded


@pytest.fixture(scope="module")
def branches():
    return export_model(seeded(Branches()), torch.zeros(1, 3, 8, 8), max_tensors=3)


@pytest.fixture(scope="module")
def resnet20():
    network = ResNet20()
    fill_with_random_weights(network, seed=0)
    return export_model(network, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("network", "example"),
    [
        (Branches(), torch.zeros(1, 3, 8, 8)),
        (Windows(), torch.zeros(1, 24)),
        (Sizes(), torch.zeros(1, 24)),
        (Recurrent(), torch.zeros(1, 24)),
        (ChannelsLast(), torch.zeros(1, 3, 9, 9)),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("max_tensors", [1, 3])
def test_tail_of_head_equals_the_whole_bit_for_bit(network, example, max_tensors):
    model = export_model(seeded(network), example, max_tensors=max_tensors)
    results = verify(model, samples=(1, 2, 3, 7))
    assert [(r.split_point.name, r.samples) for r in results if not r.exact] == []
    assert {"input", "output"} <= {r.split_point.name for r in results}


def test_exactness_is_not_vacuous(branches):
    """The comparison notices a weight of the tail that changed by a thousandth."""
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    head, tail = split(branches, at="relu")
    with torch.inference_mode():
        expected = tail(*head(x))
        bias = tail.get_parameter("classifier.bias")
        saved = bias.clone()
        bias[0] += 1e-3
        changed = tail(*head(x))
        bias.copy_(saved)
    assert not torch.equal(expected, changed)


def test_a_branch_gives_no_single_tensor_cut_inside_it(branches):
    single = [point.name for point in branches.split_points if len(point.features) == 1]
    assert single == ["input", "stem", "relu/relu", "add:2", "relu", "mean", "output"]


def test_cuts_inside_a_branch_send_several_tensors(branches):
    several = [point for point in branches.split_points if len(point.features) > 1]
    assert several
    assert all(point.elements == sum(spec.elements for spec in point.features) for point in several)
    assert any("left" in point.name for point in several)


def test_windows_folded_into_the_batch_axis_are_sent_sample_by_sample():
    model = export_model(seeded(Windows()), torch.zeros(1, 24))
    assert model.split_point("inner").features[0].shape == (4, 6)
    features = model.head("inner")(torch.zeros(3, 24))
    assert features[0].shape == (3, 4, 6)


def test_the_resnet_has_all_its_cuts_in_order(resnet20):
    names = [point.name for point in resnet20.split_points]
    assert len(names) == len(set(names)) == 24
    assert names[:4] == ["input", "conv", "relu", "stage1.0/add"]
    assert names[-5:] == ["stage3.2/add", "stage3", "pool", "flatten", "output"]
    assert resnet20.split_point("stage3.2.relu2") is resnet20.split_point("stage3")


def test_macs_are_those_of_the_paper_and_add_up(resnet20):
    totals = {point.head_macs + point.tail_macs for point in resnet20.split_points}
    assert len(totals) == 1
    # conv 3->16 on 32x32, one stage of 16 channels: 6 convolutions 16->16 on 32x32
    assert resnet20.split_point("conv").head_macs == 32 * 32 * 3 * 9 * 16
    stage1 = resnet20.split_point("stage1").head_macs - resnet20.split_point("conv").head_macs
    assert stage1 == 6 * 32 * 32 * 16 * 9 * 16
    heads = [point.head_macs for point in resnet20.split_points]
    assert heads == sorted(heads)
    assert resnet20.split_point("input").head_macs == 0
    assert resnet20.split_point("output").tail_macs == 0


def test_parameters_are_counted_once(resnet20):
    point = resnet20.split_point("output")
    assert point.head_parameters == point.total_parameters == sum(p.numel() for p in ResNet20().parameters())


def test_head_and_tail_share_the_weights(resnet20):
    whole = {p.data_ptr() for p in resnet20.program.state_dict.values()}
    head, tail = split(resnet20, at="stage2")
    mine = {p.data_ptr() for half in (head, tail) for p in half.parameters()}
    assert mine == whole


def test_attention_macs_are_counted():
    class Attention(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.scaled_dot_product_attention(x, x, x).flatten(1)

    model = export_model(Attention(), torch.zeros(1, 2, 5, 4))
    assert model.split_point("output").head_macs == 2 * (2 * 5 * 5 * 4)


def test_an_unknown_split_point_names_the_nearest_three(resnet20):
    with pytest.raises(UnknownSplitPointError, match=r"'stage4'; the nearest are (stage\d\S*, ){2}stage\d"):
        resnet20.head("stage4")


def test_the_nearest_split_points_are_named_as_they_are_listed(resnet20):
    listed = {point.name for point in resnet20.split_points}
    wrong = next(alias for point in resnet20.split_points for alias in point.aliases if "." in alias) + "x"
    with pytest.raises(UnknownSplitPointError, match="nearest are") as caught:
        resnet20.head(wrong)
    nearest = str(caught.value).split("nearest are ")[1].split(", ")
    assert len(set(nearest)) == 3
    assert set(nearest) <= listed


def test_the_digest_follows_weights_and_nothing_else(resnet20):
    def exported(seed, *, batch=1, max_tensors=1):
        network = ResNet20()
        fill_with_random_weights(network, seed=seed)
        return export_model(network, torch.zeros(batch, 3, 32, 32), max_tensors=max_tensors).digest

    assert exported(0) == exported(0, batch=4) == exported(0, max_tensors=2) == resnet20.digest
    assert exported(1) != resnet20.digest


def test_the_digest_of_seeded_weights_is_the_same_on_every_machine(resnet20):
    # Written once on an x86 machine; another processor or torch version must give the same.
    assert resnet20.digest == "2a0ed8167cc8a64dc77127cea03c8bd9fd9e34a62db063093a7bfd32403e2157"


def test_split_takes_a_module_with_an_example_or_an_exported_program():
    network = seeded(Branches())
    x = torch.ones(2, 3, 8, 8)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=8)},))
    with torch.inference_mode():
        for model in (network, program):
            head, tail = split(model, at="stem", example_input=x)
            assert torch.equal(tail(*head(x)), program.module()(x))
    with pytest.raises(ValueError, match="example_input"):
        split(network, at="stem")


def test_a_model_that_does_not_export_is_refused_in_one_line():
    class ByValue(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelExportError, match=r"torch\.export refuses ByValue") as caught:
        export_model(ByValue(), torch.zeros(1, 3))
    assert "\n" not in str(caught.value)


def test_a_fixed_batch_is_refused_with_what_to_do():
    program = torch.export.export(seeded(Branches()), (torch.zeros(2, 3, 8, 8),))
    with pytest.raises(ModelExportError, match="first axis is fixed"):
        SplittableModel(program)


def test_a_model_that_does_nothing_has_both_ends():
    model = export_model(torch.nn.Identity(), torch.zeros(1, 3))
    assert model.split_point("output") is model.split_point("input")
    assert all(result.exact for result in verify(model))


def test_two_outputs_are_refused():
    class Two(torch.nn.Module):
        def forward(self, x):
            return x + 1, x * 2

    with pytest.raises(ModelExportError, match="gives 2 outputs"):
        export_model(Two(), torch.zeros(1, 3))


class Word(torch.nn.Module):
    """int64 [N, 5] -> float32 [N, 3]."""

    def __init__(self):
        super().__init__()
        self.words, self.classifier = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.classifier(self.words(x).mean(1))


class Answer(torch.nn.Module):
    """float32 [N, 5] -> what `of` makes of a linear layer."""

    def __init__(self, of):
        super().__init__()
        self.classifier, self.of = torch.nn.Linear(5, 3), of

    def forward(self, x):
        return self.of(self.classifier(x))


@pytest.mark.parametrize(
    ("module", "example", "reason"),
    [
        (Word(), torch.zeros(1, 5, dtype=torch.int64), r"takes int64 \[N, 5\]"),
        (Word(), torch.zeros(1, 5, dtype=torch.int32), r"takes int32 \[N, 5\]"),
        (torch.nn.Linear(5, 3).double(), torch.zeros(1, 5, dtype=torch.float64), r"takes float64 \[N, 5\]"),
        (Answer(lambda y: y.argmax(1)), torch.zeros(1, 5), r"gives int64 \[N\]"),
        (Answer(lambda y: y.sum()), torch.zeros(1, 5), r"gives float32 \[\]"),
        (Answer(lambda y: y.t()), torch.zeros(1, 5), r"gives float32 \[3, N\]"),
        (Answer(lambda y: y.shape[0]), torch.zeros(1, 5), "gives SymInt"),
    ],
)
def test_ends_that_cannot_travel_are_refused_in_one_line(module, example, reason):
    with pytest.raises(ModelExportError, match=f"the model {reason}; one tensor of float32") as caught:
        export_model(module, example)
    assert "\n" not in str(caught.value)
