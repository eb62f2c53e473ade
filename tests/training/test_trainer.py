"""`SharedPrefixGRPOTrainer` trains as TRL's `GRPOTrainer` does on the same rollouts, resumes, and knows its limits."""

import copy
import warnings

import pytest
import torch
from tiny_llamas import EOS, PAD, tiny_llama, tiny_tokenizer, with_lora
from trl import GRPOConfig, GRPOTrainer

from problama_utils.training import trainer as trainer_module
from problama_utils.training.trainer import SharedPrefixGRPOTrainer, keep_master_weights, make_trainer, trainer_class

SEED = 5  # see conftest.seed
PROMPTS = ["w1 w2 w3", "w1 w2 w4 w5", "w1 w2 w6 w7 w8", "w9"]


class StockOnOurRollouts(GRPOTrainer):
    """TRL's trainer with nothing replaced but where the completions come from."""

    _sampling = SharedPrefixGRPOTrainer._sampling

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        model = self.accelerator.unwrap_model(self.model_wrapped)
        rollouts = trainer_module.sample_completions(model, prompt_ids, self._sampling())
        return [rollout.token_ids for rollout in rollouts], None


def reward_low_tokens(completions, completion_ids, **_):
    return [sum(token < 12 for token in ids) / len(ids) - 0.1 * len(ids) for ids in completion_ids]


def build(kind, folder, *, model=None, **settings):
    from datasets import Dataset

    options = dict(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, save_strategy="no",
        max_steps=3, per_device_train_batch_size=8, num_generations=4, max_completion_length=7, learning_rate=0.5,
        optim="sgd",  # Adam turns a gradient that is 0 but for rounding into a whole step, one way or the other
        lr_scheduler_type="constant", temperature=0.9, logging_steps=1, seed=5, gradient_checkpointing=False,
    )  # fmt: skip
    options.update(settings)
    model = with_lora(tiny_llama()) if model is None else model
    return kind(
        model=model, reward_funcs=reward_low_tokens, args=GRPOConfig(**options),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 4}), processing_class=tiny_tokenizer(),
    )  # fmt: skip


def trained(kind, folder, **settings):
    built = build(kind, folder, **settings)
    built.train()
    logs = [row for row in built.state.log_history if "loss" in row]
    weights = {n: p.detach().clone() for n, p in built.model.named_parameters() if p.requires_grad}
    return logs, weights


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.0},
        {"beta": 0.2},
        {"beta": 0.2, "num_iterations": 3, "max_steps": 5},
        {"beta": 0.0, "num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"beta": 0.1, "steps_per_generation": 2, "max_steps": 4, "loss_type": "dapo"},
        {"beta": 0.1, "loss_type": "grpo", "mask_truncated_completions": True},
        {"beta": 0.0, "entropy_coef": 0.05, "top_entropy_quantile": 0.5},
    ],
    ids=lambda settings: ",".join(f"{k}={v}" for k, v in settings.items()),
)
def test_whole_trainings_agree_with_the_stock_trainer_on_the_same_rollouts(tmp_path, settings, seed):
    """Loss, KL, entropy, clipping and gradient norm of every step, and the weights at the end."""
    stock_logs, stock_weights = trained(StockOnOurRollouts, tmp_path / "stock", seed=seed, **settings)
    our_logs, our_weights = trained(SharedPrefixGRPOTrainer, tmp_path / "ours", seed=seed, **settings)
    assert len(our_logs) == settings.get("max_steps", 3)
    assert min(row.get("completions/min_length", 7) for row in our_logs) < 7  # some completions stopped early
    for stock, ours in zip(stock_logs, our_logs, strict=True):
        assert ours["loss"] == pytest.approx(stock["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(stock["grad_norm"], rel=1e-3)
        for name in stock.keys() - {"step_time"}:
            if stock[name] is None:  # a mean over no completion at all
                assert ours[name] is None
                continue
            assert ours[name] == pytest.approx(stock[name], rel=1e-3, abs=1e-4), name
    for name, weight in stock_weights.items():
        assert torch.allclose(our_weights[name], weight, atol=1e-3), name
    moved = max(weight.abs().max() for name, weight in stock_weights.items() if "lora_B" in name)  # from 0
    assert moved > 0.02


def random_rollouts(seed, lengths, width=7):
    generator = torch.Generator().manual_seed(seed)
    rows = len(lengths)
    prompts = torch.randint(0, 12, (rows // 4, 5), generator=generator).repeat_interleave(4, 0)
    prompts[:, 0], prompt_mask = 3, torch.ones(rows, 5, dtype=torch.long)
    prompts[-4:, :2], prompt_mask[-4:, :2] = PAD, 0  # a shorter prompt, padded on the left
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(0, 12, (rows, width), generator=generator)
    return {
        "prompt_ids": prompts, "prompt_mask": prompt_mask, "completion_ids": ids * mask + PAD * (1 - mask),
        "completion_mask": mask, "advantages": torch.randn(rows, generator=generator),
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("lengths", [(7, 3, 1, 5, 2, 7, 7, 4), (1,) * 8], ids=["unequal", "length 1"])
def test_loss_and_every_adapter_gradient_equal_the_stock_ones(tmp_path, beta, iterations, lengths, seed):
    """Log-probabilities within 1e-4, loss within 1e-5, each gradient within 1e-3 relative, in fp32."""
    inputs = random_rollouts(1 + seed, lengths)
    model = with_lora(tiny_llama(seed))
    results = []
    for number, kind in enumerate((GRPOTrainer, SharedPrefixGRPOTrainer)):
        built = build(kind, tmp_path / str(number), model=copy.deepcopy(model), beta=beta)
        built.current_gradient_accumulation_steps = 1
        built.model.train()
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        logps, entropy, _ = built._get_per_token_logps_and_entropies(built.model, ids, mask, 7, compute_entropy=True)
        noise = torch.randn(logps.shape, generator=torch.Generator().manual_seed(2)) * 0.3
        extra = {"ref_per_token_logps": logps.detach() + noise} if beta else {}
        if iterations > 1:
            extra["old_per_token_logps"] = logps.detach() - noise
        loss = built._compute_loss(built.model, {**inputs, **extra})
        loss.backward()
        gradients = {n: p.grad for n, p in built.model.named_parameters() if p.grad is not None}
        results.append((logps, entropy, loss, gradients))
    (logps, entropy, loss, gradients), (our_logps, our_entropy, our_loss, our_gradients) = results
    assert torch.allclose(our_logps, logps, atol=1e-4, rtol=0)
    assert torch.allclose(our_entropy, entropy, atol=1e-4, rtol=0)
    assert float(our_loss) == pytest.approx(float(loss), abs=1e-5)
    assert gradients.keys() == our_gradients.keys()
    assert len(gradients) == 28
    for name, wanted in gradients.items():
        assert float((our_gradients[name] - wanted).norm()) <= 1e-3 * float(wanted.norm()) + 1e-7, name


def test_the_reference_policy_stays_where_the_adapter_began(tmp_path, seed):
    """At the first step policy and reference are one model, so the KL is exactly 0, in bf16 too."""
    model = with_lora(tiny_llama().to(torch.bfloat16))
    logs, _ = trained(SharedPrefixGRPOTrainer, tmp_path, model=model, beta=0.1, seed=seed)
    assert logs[0]["kl"] == 0.0
    assert logs[-1]["kl"] > 0.0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path, dtype, seed):
    def run(folder, **settings):
        model = with_lora(tiny_llama().to(dtype))
        return build(SharedPrefixGRPOTrainer, folder, model=model, beta=0.1, max_steps=4, seed=seed, **settings)

    whole = run(tmp_path / "whole", save_strategy="steps", save_steps=2)
    whole.train()
    resumed = run(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for (name, first), second in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(first, second), name
        assert not first.requires_grad or first.dtype == torch.float32
    losses = [[row["loss"] for row in built.state.log_history if "loss" in row] for built in (whole, resumed)]
    assert losses[0] == losses[1]


def test_adapters_of_a_bf16_model_are_fp32_for_the_optimiser(tmp_path):
    model = with_lora(tiny_llama().to(torch.bfloat16))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    keep_master_weights(model)
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad} == {torch.bfloat16}


def test_a_changed_signature_in_trl_means_the_stock_way_said_once(tmp_path, monkeypatch):
    monkeypatch.setitem(trainer_module.EXPECTED_SIGNATURES, "_compute_loss", ("self", "model", "batch"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built = build(SharedPrefixGRPOTrainer, tmp_path, max_steps=1)
        built.train()
    said = [str(w.message) for w in caught if "stock way" in str(w.message)]
    assert len(said) == 1
    assert "_compute_loss takes self, model, inputs" in said[0]
    assert not built.packs_rows
    assert built.state.global_step == 1


def test_another_architecture_is_trained_the_stock_way(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=PAD, eos_token_id=EOS,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="Qwen2ForCausalLM, not LlamaForCausalLM"):
        built = build(SharedPrefixGRPOTrainer, tmp_path, model=with_lora(Qwen2ForCausalLM(config)), max_steps=1)
    built.train()
    assert built.state.global_step == 1


def test_a_setting_the_sampler_lacks_is_sampled_the_stock_way(tmp_path):
    with pytest.warns(UserWarning, match="samples the stock way: repetition_penalty = 1.2"):
        built = build(SharedPrefixGRPOTrainer, tmp_path, repetition_penalty=1.2, max_steps=1)
    assert built.packs_rows
    built.train()
    assert built.state.global_step == 1


def test_the_installed_trl_has_the_signatures_relied_on():
    assert trainer_module.changed_signatures() == []


def test_trainers_are_chosen_by_name(tmp_path):
    assert trainer_class("stock") is GRPOTrainer
    assert trainer_class() is (GRPOTrainer if torch.cuda.is_available() else SharedPrefixGRPOTrainer)
    with pytest.raises(ValueError, match="Choose one of: shared-prefix, stock"):
        make_trainer(trainer="fast")
