"""Broken adapters are refused before they are loaded, with one sentence each; every sound kind still loads."""

import json
import math
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llamas import tiny_llama, with_lora

from benchmarks.arc_study import base_of
from problama_utils import CourseError
from problama_utils.config import course_root
from problama_utils.model.adapters import CONFIG, WEIGHTS, check_adapter
from problama_utils.model.loading import load_adapter

A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "adapter"
    with_lora(tiny_llama()).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "adapter")


def settings(**changes):
    def apply(folder):
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **changes}))
    return apply


def config_text(text):
    return lambda folder: (folder / CONFIG).write_bytes(text if isinstance(text, bytes) else text.encode())


def tensors(change):
    def apply(folder):
        values = load_file(folder / WEIGHTS)
        save_file(change(values) or values, folder / WEIGHTS)
    return apply


def one_value(key, value):
    def change(values):
        values[key][-1, -1] = value
    return tensors(change)


def weights(change):
    """Change the bytes of the file."""
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def pickled(name):
    def apply(folder):
        values = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        torch.save(values, folder / name)
    return apply


def without(name):
    return lambda folder: (folder / name).unlink()


def a_folder_instead(name):
    def apply(folder):
        (folder / name).unlink()
        (folder / name).mkdir()
    return apply


def header_only(shape):
    """A header that promises more data than the file holds."""
    header = json.dumps({A0: {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * math.prod(shape)]}}).encode()
    return lambda folder: (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)


NO_LORA = "describes no LoRA adapter for this model"
LACKS = "does not fit this model.* has the shape None, expected"
BROKEN = {
    # settings
    "no settings": (without(CONFIG), "adapter_config.json of the adapter in .* cannot be read"),
    "settings are a folder": (a_folder_instead(CONFIG), "cannot be read"),
    "empty settings": (config_text(""), "cannot be read"),
    "settings cut off": (config_text('{"r": 4, "peft_'), "cannot be read"),
    "settings in Latin-1": (config_text(b'{"r": "\xe9"}'), "cannot be read"),
    "settings nested without end": (config_text("[" * 100_000), "cannot be read"),
    "settings are a list": (config_text("[1]"), "holds list"),
    "settings are null": (config_text("null"), "holds NoneType"),
    "settings are empty": (config_text("{}"), "peft_type = None"),
    "unknown peft_type": (settings(peft_type="MAGIC"), "peft_type = 'MAGIC'"),
    "peft_type of another kind": (settings(peft_type="IA3"), "peft_type = 'IA3'"),
    "peft_type is a list": (settings(peft_type=["LORA"]), "peft_type"),
    "a classifier": (settings(task_type="SEQ_CLS"), "task_type = 'SEQ_CLS'"),
    "modules_to_save": (settings(modules_to_save=["lm_head"]), "modules_to_save"),
    "modules_to_save is a word": (settings(modules_to_save="lm_head"), "modules_to_save"),
    "new tokens": (settings(trainable_token_indices=[1]), "trainable_token_indices"),
    "layers repeated": (settings(layer_replication=[[0, 2], [0, 2]]), "layer_replication"),
    "r of a million": (settings(r=1_000_000), "r = 1000000"),
    "r of 10^400": (settings(r=10**400), "r = 1000"),
    "r of 0": (settings(r=0), "r = 0"),
    "r below 0": (settings(r=-4), "r = -4"),
    "r is a text": (settings(r="64"), "r = '64'"),
    "r is true": (settings(r=True), "r = True"),
    "r is a fraction": (settings(r=4.0), "r = 4.0"),
    "r is missing": (settings(r=None), "r = None"),
    "r differs from the tensors": (settings(r=8), "does not fit this model.*rank r = 8"),
    "r is large, but allowed": (settings(r=4096), "does not fit this model.*rank r = 4096"),
    "one rank of a million": (settings(rank_pattern={"q_proj": 1_000_000}), "rank_pattern"),
    "ranks are a list": (settings(rank_pattern=[4]), NO_LORA),
    "ranks by a broken pattern": (settings(rank_pattern={"(": 4}), NO_LORA),
    "alpha is NaN": (settings(lora_alpha=float("nan")), "lora_alpha = nan"),
    "alpha is infinite": (settings(lora_alpha=float("inf")), "lora_alpha = inf"),
    "alpha is a text": (settings(lora_alpha="16"), "lora_alpha = '16'"),
    "alpha is 0": (settings(lora_alpha=0), "lora_alpha = 0"),
    "one alpha is NaN": (settings(alpha_pattern={"q_proj": float("nan")}), "alpha_pattern"),
    "targets that the model lacks": (settings(target_modules=["q_proj", "c_attn"]), "this model has no c_attn"),
    "targets of another model": (settings(target_modules=["query_key_value"]), "this model has no query_key_value"),
    "targets are empty": (settings(target_modules=[]), "target_modules = \\[\\]"),
    "targets are numbers": (settings(target_modules=[1, 2]), NO_LORA),
    "targets are none": (settings(target_modules=None), "target_modules = None"),
    "targets by a broken pattern": (settings(target_modules="(q_proj"), NO_LORA),
    "targets by a pattern that finds nothing": (settings(target_modules=".*attn_z"), "this model has no .*attn_z"),
    "targets are no layers": (settings(target_modules=["self_attn"]), NO_LORA),
    "targets are embeddings": (settings(target_modules=["embed_tokens"]), NO_LORA),
    "a flag is a word": (settings(use_dora="yes"), "use_dora = 'yes'"),
    "dropout is a word": (settings(lora_dropout="none"), NO_LORA),
    "dropout is NaN": (settings(lora_dropout=float("nan")), "lora_dropout = nan"),
    "magnitudes are promised": (settings(use_dora=True), r"lora_magnitude_vector has the shape None, expected \(32,\)"),
    # the file
    "no weights": (without(WEIGHTS), "run the training"),
    "weights are a folder": (a_folder_instead(WEIGHTS), "no adapter in"),
    "empty weights": (weights(lambda raw: b""), "cannot be read"),
    "weights cut in the header": (weights(lambda raw: raw[:100]), "cannot be read"),
    "weights cut in the values": (weights(lambda raw: raw[:-10]), "cannot be read"),
    "more than weights": (weights(lambda raw: raw + b"more"), "cannot be read"),
    "a length of 2^63": (weights(lambda raw: b"\xff" * 8 + raw[8:]), "cannot be read"),
    "text": (weights(lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "cannot be read"),
    "a pickle": (pickled("adapter_model.bin"), "pickle"),
    "a pickle by another name": (pickled(WEIGHTS), "cannot be read"),
    "a header without values": (header_only([1_000_000, 1_000_000]), "cannot be read"),
    # names
    "4 tensors of 28": (tensors(lambda v: dict(list(v.items())[:4])), LACKS),
    "no tensor": (tensors(lambda v: {"x": torch.zeros(1)}), LACKS),
    "unrelated names": (tensors(lambda v: {f"layer.{i}": t for i, t in enumerate(v.values())}), LACKS),
    "one tensor too many": (tensors(lambda v: {**v, "extra": torch.zeros(2)}), "extra has the shape .*, expected None"),
    "one tensor missing": (tensors(lambda v: {k: t for k, t in v.items() if k != B0}), f"{B0} has the shape None"),
    "another prefix": (tensors(lambda v: {k.removeprefix("base_model."): t for k, t in v.items()}), LACKS),
    "another adapter's name": (tensors(lambda v: {k.replace(".weight", ".mine.weight"): t for k, t in v.items()}),
                               "expected None"),
    "a layer too many": (tensors(lambda v: {**v, A0.replace("rs.0", "rs.2"): v[A0].clone()}), "expected None"),
    "a tensor twice": (tensors(lambda v: {**v, A0.replace(".weight", ".default.weight"): v[A0].clone()}), "twice"),
    # shapes and types
    "too wide": (tensors(lambda v: {**v, A0: torch.zeros(4, 33)}), r"shape \(4, 33\), expected \(4, 32\)"),
    "turned round": (tensors(lambda v: {k: t.t().contiguous() for k, t in v.items()}), "does not fit this model"),
    "flat": (tensors(lambda v: {**v, A0: torch.zeros(128)}), r"shape \(128,\)"),
    "a single number": (tensors(lambda v: {**v, A0: torch.tensor(0.0)}), r"shape \(\)"),
    "another rank in one tensor": (tensors(lambda v: {**v, B0: torch.zeros(32, 5)}), r"shape \(32, 5\)"),
    "whole numbers": (tensors(lambda v: {**v, A0: torch.zeros(4, 32, dtype=torch.int8)}), "type I8"),
    "yes and no": (tensors(lambda v: {**v, A0: torch.zeros(4, 32, dtype=torch.bool)}), "type BOOL"),
    # values
    "one NaN": (one_value(A0, math.nan), f"'{A0}' .* not finite"),
    "one infinity": (one_value(B0, math.inf), f"'{B0}' .* not finite"),
    "one infinity below 0": (one_value(B0, -math.inf), f"'{B0}' .* not finite"),
    "all NaN": (tensors(lambda v: {k: torch.full_like(t, math.nan) for k, t in v.items()}), "not finite"),
    "NaN in bf16": (tensors(lambda v: {k: torch.full_like(t, math.nan).bfloat16() for k, t in v.items()}), "finite"),
    "too large for 16 bits": (tensors(lambda v: {k: (t * 1e9).half() for k, t in v.items()}), "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_adapter_is_refused_with_a_sentence_and_the_model_stays_as_it_was(adapter, kind):
    damage, sentence = BROKEN[kind]
    damage(adapter)
    model = tiny_llama()
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(CourseError, match=sentence) as caught:
        load_adapter(model, adapter)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert [name for name, _ in model.named_modules()] == before, "the layers were exchanged before the check"


def test_an_absurd_rank_allocates_nothing(adapter, monkeypatch):
    settings(r=1_000_000)(adapter)
    import peft

    monkeypatch.setattr(peft.PeftModel, "from_pretrained", lambda *a, **k: pytest.fail("peft was asked"))
    with pytest.raises(CourseError):
        load_adapter(tiny_llama(), adapter)


def test_a_file_in_place_of_the_folder_is_named(adapter):
    for path in (adapter / WEIGHTS, adapter / CONFIG):
        with pytest.raises(CourseError, match="is a file"):
            load_adapter(tiny_llama(), path)


def outputs(model):
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8]])).logits


def as_default(values):
    return {key.replace(".weight", ".default.weight"): value for key, value in values.items()}


def with_a_reference(folder):
    shutil.copytree(folder, folder.parent / "copy")
    shutil.move(folder.parent / "copy", folder / "ref")


SOUND = {
    "as peft saves it": lambda folder: None,
    "with the adapter's name in the keys": tensors(as_default),
    "in fp64": tensors(lambda v: {key: value.double() for key, value in v.items()}),
    "with TRL's copy for the reference": with_a_reference,
    "without a task": settings(task_type=None),
    "with settings of a later peft": settings(use_something_new=False, peft_version="9.9"),
    "targets by a pattern": settings(target_modules=r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"),
    "all linear layers": settings(target_modules="all-linear"),
}


@pytest.mark.parametrize("kind", SOUND)
@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
def test_a_sound_adapter_loads_and_changes_the_outputs(adapter, kind):
    SOUND[kind](adapter)
    model = with_lora(tiny_llama())  # the same seeds: the weights that were saved
    torch.testing.assert_close(outputs(load_adapter(tiny_llama(), adapter)), outputs(model), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(outputs(tiny_llama()), outputs(model), atol=1e-3)


KINDS = {
    "DoRA": lambda m: with_lora(m, use_dora=True), "biases": lambda m: with_lora(m, lora_bias=True),
    "scaled by the root of r": lambda m: with_lora(m, use_rslora=True),
    "ranks by layer": lambda m: with_lora(m, rank_pattern={"q_proj": 2, "layers.0.mlp.up_proj": 6}),
    "scales by layer": lambda m: with_lora(m, alpha_pattern={"v_proj": 3}),
    "one layer": lambda m: with_lora(m, layers_to_transform=[1]),
    "one module": lambda m: with_lora(m, targets=["layers.0.mlp.down_proj"]),
    "all but one": lambda m: with_lora(m, exclude_modules=["k_proj"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_shapes_of_lora_load(tmp_path, kind):
    model = KINDS[kind](tiny_llama())
    model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(outputs(load_adapter(tiny_llama(), tmp_path / "adapter")), outputs(model))


def test_the_layers_of_a_4_bit_model_are_measured_by_their_logical_size(adapter):
    bnb = pytest.importorskip("bitsandbytes")
    model = tiny_llama()
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    packed = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, quant_type="nf4")
                    packed.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
                    setattr(parent, name, packed.to("cpu"))
    assert model.model.layers[0].self_attn.q_proj.weight.shape != (32, 32), "two weights share a byte"
    check_adapter(model, adapter)
    one_value(A0, math.nan)(adapter)
    with pytest.raises(CourseError, match="not finite"):
        check_adapter(model, adapter)


def test_a_home_folder_may_be_written_as_a_tilde(adapter, monkeypatch):
    monkeypatch.setenv("HOME", str(adapter.parent))
    monkeypatch.setenv("USERPROFILE", str(adapter.parent))
    load_adapter(tiny_llama(), "~/adapter")


@pytest.mark.parametrize("text", ["[1]", "null", "3", '"base"', "{"])
def test_a_study_refuses_settings_that_are_no_object(adapter, text):
    config_text(text)(adapter)
    with pytest.raises(CourseError, match=CONFIG):
        base_of(adapter)
    (adapter.parent / "run.json").write_text(text)
    with pytest.raises(CourseError, match=CONFIG):
        base_of(adapter)


@pytest.mark.slow
def test_every_shipped_adapter_passes_on_the_embedded_model():
    from problama_utils.config import get_profile
    from problama_utils.model.loading import load_policy

    if os.environ.get("PROBLAMA_MODEL"):
        pytest.fail("unset PROBLAMA_MODEL: the shipped adapters belong to the embedded model")
    model, _ = load_policy(get_profile("cpu"))
    shipped = sorted((course_root() / "assets/runs").glob("*/adapter"))
    assert len(shipped) >= 2
    for folder in shipped:
        check_adapter(model, folder)
