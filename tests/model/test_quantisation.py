"""Four bits: the code, the blocks and the scales equal bitsandbytes' CPU kernels; counts equal the published ones."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from problama_utils.config import get_profile
from problama_utils.model import quantisation
from problama_utils.model import sizes as model_size
from problama_utils.model.memory import LLAMA_3_1_8B, SMOLLM2_135M, Architecture
from problama_utils.model.quantisation import (
    bits_per_weight,
    dequantise,
    dynamic_code,
    keep_differentiable,
    normal_float_code,
    pack,
    quantise,
    relative_error,
    uniform_code,
    unpack,
)

library = pytest.importorskip("bitsandbytes.functional")
NF4 = normal_float_code()


def normal(*shape, seed=0, dtype=torch.float32):
    return (0.03 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def test_the_nf4_code_is_the_librarys_table_to_the_last_bit():
    assert torch.equal(NF4, library.get_4bit_type("nf4", device="cpu"))
    assert (NF4 == 0).sum() == 1 and NF4[0] == -1 and NF4[-1] == 1


def test_the_nf4_code_agrees_with_the_standard_librarys_normal_distribution():
    from statistics import NormalDist

    quantile = NormalDist().inv_cdf
    tail = 1 - (1 / 30 + 1 / 32) / 2
    assert NF4[14].item() == pytest.approx(quantile(tail - (tail - 0.5) / 8) / quantile(tail), abs=1e-6)
    assert NF4[1].item() == pytest.approx(-quantile(tail - (tail - 0.5) / 7) / quantile(tail), abs=1e-6)


def test_the_dynamic_code_is_the_librarys():
    assert torch.equal(dynamic_code(), library.create_dynamic_map())


def test_uniform_int4_is_the_integers_over_seven():
    assert torch.allclose(7 * uniform_code(), torch.arange(-7.0, 8.0))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(576, 192), (64, 1536), (3, 64), (5, 30)])
def test_bytes_and_round_trip_equal_bitsandbytes_cpu_kernels(shape, dtype, double):
    weights = normal(*shape, seed=sum(shape), dtype=dtype)
    packed, state = library.quantize_4bit(weights, quant_type="nf4", compress_statistics=double)
    ours = quantise(weights, NF4, double=double)
    assert torch.equal(ours.packed, packed.reshape(-1))
    assert torch.equal(dequantise(ours), library.dequantize_4bit(packed, state))
    assert dequantise(ours).dtype == dtype


def test_double_quantisation_equals_the_library_on_many_thousand_scales():
    # The kernel's look-up table rounds about one scale in a thousand to the second nearest code value.
    absmax = normal(40_000, seed=9).abs() + 0.05
    scales = quantisation.double_quantise(absmax)
    codes, state = library.quantize_blockwise(absmax - absmax.mean(), blocksize=256)
    assert torch.equal(scales.values, codes)
    assert torch.equal(scales.absmax(), library.dequantize_blockwise(codes, state) + absmax.mean())


def test_other_block_sizes_equal_the_library_too():
    weights = normal(64, 512)
    for size in (32, 128, 256):
        packed, state = library.quantize_4bit(weights, blocksize=size, quant_type="nf4")
        assert torch.equal(dequantise(quantise(weights, NF4, block_size=size)), library.dequantize_4bit(packed, state))


def test_a_block_by_hand():
    code = torch.tensor([-1.0, 0.0, 1.0])
    ours = quantise(torch.tensor([0.5, -2.0, 0.9, 1.1]), code, block_size=4)
    assert dequantise(ours).tolist() == [0.0, -2.0, 0.0, 2.0]
    assert ours.packed.tolist() == [0x10, 0x12]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=200), st.sampled_from([2, 7, 64]))
def test_no_number_moves_further_than_half_the_widest_step_of_its_block(values, size):
    weights = torch.tensor(values)
    restored = dequantise(quantise(weights, NF4, block_size=size))
    widest = (NF4[1:] - NF4[:-1]).max() / 2
    for start in range(0, len(values), size):
        block, back = weights[start : start + size], restored[start : start + size]
        assert (block - back).abs().max() <= widest * block.abs().max() * (1 + 1e-5) + 1e-30


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 15), max_size=50))
def test_packing_loses_nothing(indices):
    packed = pack(torch.tensor(indices, dtype=torch.uint8))
    assert packed.numel() == math.ceil(len(indices) / 2)
    assert unpack(packed, len(indices)).tolist() == indices


def test_zeros_stay_zeros_and_the_input_is_left_alone():
    weights = torch.cat([torch.zeros(64), torch.ones(64)])
    before = weights.clone()
    assert torch.equal(dequantise(quantise(weights, NF4, double=True))[:64], torch.zeros(64))
    assert torch.equal(weights, before)


def test_nf4_beats_even_spacing_on_gaussian_numbers_and_loses_on_uniform_ones():
    # Twenty draws of 64,000 numbers: the gap of about 8 % is far beyond their spread, so this cannot fail by chance.
    def error(numbers, code):
        return relative_error(dequantise(quantise(numbers, code)), numbers)

    for seed in range(20):
        gaussian = normal(1000, 64, seed=seed)
        even = torch.rand(1000, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        assert error(gaussian, NF4) < 0.95 * error(gaussian, uniform_code(16)) < error(gaussian, uniform_code())
        assert error(even, NF4) > error(even, uniform_code(16))


def test_stored_bits_approach_the_formula():
    weights = normal(64 * 256, 64)
    assert quantise(weights, NF4).stored_bits() == bits_per_weight(64) == 4.5
    assert quantise(weights, NF4, double=True).stored_bits() == pytest.approx(bits_per_weight(64, 256), abs=1e-4)


@pytest.mark.parametrize(("weights", "code", "size", "words"), [
    (torch.ones(4), torch.linspace(-1, 1, 17), 64, "16 values"),
    (torch.ones(4), NF4, 0, "blocks of 0"),
    (torch.tensor([1.0, math.nan]), NF4, 64, "NaN"),
    (torch.tensor([1.0, math.inf]), NF4, 64, "infinity"),
])
def test_impossible_input_is_refused_with_the_reason(weights, code, size, words):
    with pytest.raises(ValueError, match=words):
        quantise(weights, code, block_size=size)


def test_a_tail_that_is_no_probability_is_refused():
    for tail in (0.5, 1.0):
        with pytest.raises(ValueError, match="between 0.5 and 1"):
            normal_float_code(tail)


def test_four_bit_layers_pass_a_gradient_after_an_evaluation():
    # As delivered, a CPU with AVX512-BF16 repacks the layer at its first evaluation, and the gradient is gone.
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to("cpu").eval()
    assert keep_differentiable(torch.nn.Sequential(layer, torch.nn.ReLU())) == 1
    with torch.no_grad():
        layer(torch.ones(1, 64))
    x = torch.ones(1, 64, requires_grad=True)
    layer.train()(x).sum().backward()
    weight = library.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert torch.allclose(x.grad[0], weight.sum(0), atol=1e-4)


@pytest.fixture(scope="module")
def llama():
    return model_size.build_on_meta(LLAMA_3_1_8B)


def test_llama_31_8b_counts_as_published_on_the_meta_device(llama):
    assert {weight.device.type for weight in llama.parameters()} == {"meta"}
    counts = model_size.count_by_kind(llama)
    assert counts["total"] == 8_030_261_248 == sum(weight.numel() for weight in llama.parameters())
    projections = sum(counts[name] for name in get_profile("slides").lora.target_modules)
    assert projections == LLAMA_3_1_8B.projection_parameters == 6_979_321_856


def test_the_slides_adapter_counts_as_published():
    lora = get_profile("slides").lora
    adapted = model_size.with_adapter(model_size.build_on_meta(LLAMA_3_1_8B), lora.r, lora.target_modules)
    trainable = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert trainable == model_size.count_by_kind(adapted)["adapter"] == 167_772_160


def test_a_tied_head_counts_once():
    counts = model_size.count_by_kind(model_size.build_on_meta(SMOLLM2_135M))
    assert counts["head"] == 0 and counts["total"] == SMOLLM2_135M.parameters == 134_515_008


def test_bytes_of_every_format_by_hand():
    tiny = Architecture(10, 4, 8, 1, 2, 2)  # projections 4·16 + 3·32 = 160, rest 2·40 + 3·4 = 92
    assert model_size.weight_bytes(tiny, "fp32") == 4 * 252
    assert model_size.weight_bytes(tiny, "bf16") == 2 * 252
    assert model_size.weight_bytes(tiny, "int8") == 160 + 4 * (4 * 4 + 8 + 8 + 4) + 2 * 92
    assert model_size.weight_bytes(tiny, "NF4") == round(160 * 4.126953125 / 8) + 2 * 92
    with pytest.raises(ValueError, match="fp32, bf16, int8, NF4"):
        model_size.weight_bytes(tiny, "int4")


def test_the_kv_cache_of_llama_31_8b_is_128_kib_a_token():
    assert model_size.kv_cache_bytes(LLAMA_3_1_8B, 1, 1) == 128 * 1024
    assert model_size.kv_cache_bytes(LLAMA_3_1_8B, 8, 512) == 8 * 512 * 128 * 1024


def test_held_bytes_of_a_four_bit_layer_include_its_scales():
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(64, 128, bias=False, quant_type="nf4").to("cpu")
    assert model_size.logical_size(layer.weight) == 64 * 128
    assert model_size.held_bytes(layer) == 64 * 128 // 2 + 128 + 4  # indices, 8-bit scales, one second scale
    assert model_size.held_bytes(torch.nn.Linear(4, 4)) == 20 * 4


def test_the_slides_profile_makes_the_slides_two_calls_to_the_letter(monkeypatch):
    from problama_utils.model.loading import attach_lora, load_policy

    calls = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**arguments):
            calls["load"] = arguments
            return torch.nn.Linear(2, 2), SimpleNamespace(pad_token="<pad>")

        @staticmethod
        def get_peft_model(model, **arguments):
            calls["attach"] = arguments
            return model

    stand_in = SimpleNamespace(FastLanguageModel=FastLanguageModel)
    monkeypatch.setitem(__import__("sys").modules, "unsloth", stand_in)
    for name in ("PROBLAMA_MODEL", "PROBLAMA_DTYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("problama_utils.model.loading.samples_with_vllm", lambda profile: profile.fast_inference)
    slides = get_profile("slides")
    attach_lora(load_policy(slides)[0], slides)
    ours = dict(calls)
    exec(_slides_cell(), {"FastLanguageModel": FastLanguageModel})
    assert ours == calls and ours["load"]["fast_inference"] is True


def _slides_cell():
    """The fenced block of notebook 02 that shows the slides' set-up cell."""
    import json

    from problama_utils.config import course_root

    path = course_root() / "notebooks" / "02_qlora_setup.ipynb"
    texts = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    return next(text for text in texts if "```python\nmodel, tokenizer" in text).split("```python\n")[1].split("```")[0]
