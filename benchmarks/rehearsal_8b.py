"""Rehearse the slides' training at full size: Llama-3.1-8B's architecture, random weights, a few GRPO steps, measured.

    python benchmarks/rehearsal_8b.py                 one GPU: 8,030,261,248 weights, NF4, r = 64, group of 8
    python benchmarks/rehearsal_8b.py --miniature     the same programme on a CPU with four narrow layers
    python benchmarks/rehearsal_8b.py --cpu           every matrix at full size on a CPU with 16 GB: one short GRPO step

Speed and memory depend on shapes, not on what the weights say, so nothing is downloaded: a checkpoint in the layout of
the real one is filled with random numbers (16 GB of disk, removed at the end) and loaded as any other, which quantises
its projections to NF4. Then two trainings with the settings of profile `slides`, one after the other in processes of
their own: the course's way (unsloth where it is installed with a GPU, else its own trainer) and stock TRL + peft.

`--cpu` writes no checkpoint: each matrix is drawn and quantised in place, one at a time, so that the model
never takes more than its 4 bits. One step of transformers + peft + stock TRL (2 completions of 8 tokens) is then
measured, and its memory is compared with what `model.memory` computes for that path.

What differs from the slides' run: the weights; the tokenizer, which is the embedded model's (its 49,152 tokens are ids
of the 128,256 too; ids above it decode to nothing); a handful of steps; and completions that hardly ever stop early.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from a checkout that is not installed

from problama_utils.config import Profile, get_profile  # noqa: E402
from problama_utils.model.memory import LLAMA_3_1_8B, Architecture, training_bytes  # noqa: E402
from problama_utils.setup.gpu import samples_with_vllm  # noqa: E402
from problama_utils.setup.machine import peak_memory_gb  # noqa: E402

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, PreTrainedModel

KINDS = ("course", "stock")
MINIATURE = Architecture(50_304, 256, 768, 4, 8, 2)  # more ids than the tokenizer has words, as at full size
SCALE = 0.02  # standard deviation of the random weights, as transformers initialises them
CPU_GROUP, CPU_TOKENS = 2, 8  # completions and tokens of the step on a CPU
AGREEMENT = 0.10  # by how much measured memory may differ from the computed


def main() -> int:
    options = _parser().parse_args()
    if options.worker:
        print("RESULT " + json.dumps(_train(options)), flush=True)
        return 0
    import torch

    if options.cpu:
        return _rehearse_on_cpu(options)
    if not options.miniature and not torch.cuda.is_available():
        print("The rehearsal at full size needs a CUDA GPU, and there is none: --cpu takes one step at full size "
              "on this CPU, --miniature rehearses the programme itself.", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that 16 GB do not stay behind
    architecture = MINIATURE if options.miniature else LLAMA_3_1_8B
    with tempfile.TemporaryDirectory(prefix="rehearsal-", dir=options.scratch) as scratch:
        options.folder = Path(scratch) / "checkpoint"
        started = time.perf_counter()
        write_checkpoint(architecture, options.folder, seed=options.seed)
        seconds = time.perf_counter() - started
        print(f"A checkpoint of {architecture.parameters:,} random weights, {seconds:.0f} s", flush=True)
        rows = {kind: _worker(kind, options) for kind in options.only or KINDS}
    record = _record(architecture, rows, options)
    print("\n".join(table(record)))
    if options.save or not options.miniature:
        _write(record, "miniature" if options.miniature else "8b")
    return int(any("error" in row for row in rows.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--miniature", action="store_true", help="four narrow layers, 16 tokens, on a CPU; not saved")
    parser.add_argument("--cpu", action="store_true", help="one short step at full size on a CPU")
    parser.add_argument("--steps", type=int, default=4, help="GRPO steps of each training; the first is the warm-up")
    parser.add_argument("--tokens", type=int, default=0, help="of a completion; 0 = the profile's (miniature: 16)")
    parser.add_argument("--only", choices=KINDS, nargs=1, help="measure one of the two")
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--save", action="store_true", help="write the result of a miniature or of --cpu as well")
    parser.add_argument("--scratch", help="folder with 17 GB free for the random checkpoint (default: the system's)")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def llama_config(architecture: Architecture) -> LlamaConfig:
    """Return transformers' configuration of an architecture, the rest as in Llama-3.1-8B-Instruct's config.json."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=architecture.vocab_size, hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size, num_hidden_layers=architecture.num_hidden_layers,
        num_attention_heads=architecture.num_attention_heads, num_key_value_heads=architecture.num_key_value_heads,
        tie_word_embeddings=architecture.tie_word_embeddings, max_position_embeddings=131_072, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8_192},
        architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip


def shards(architecture: Architecture) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield the names and shapes of a Llama's tensors, one layer at a time, so that no more is ever held."""
    hidden = architecture.hidden_size
    yield {"model.embed_tokens.weight": (architecture.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not architecture.tie_word_embeddings:
        yield {"lm_head.weight": (architecture.vocab_size, hidden)}
    for layer in range(architecture.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        rooms = {name: "self_attn" if name[0] in "qkvo" else "mlp" for name in architecture.shapes()}
        yield {
            **{f"{prefix}.{rooms[name]}.{name}.weight": (outputs, inputs)
               for name, (inputs, outputs) in architecture.shapes().items()},
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
        }  # fmt: skip


def write_checkpoint(architecture: Architecture, folder: Path, *, seed: int) -> None:
    """Write a checkpoint of random bf16 weights (norms 1), with the embedded model's tokenizer, into `folder`."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    from problama_utils.model.weights import embedded_model_dir

    folder.mkdir(parents=True)
    source = torch.Generator().manual_seed(seed)
    index: dict[str, str] = {}
    for number, shapes in enumerate(shards(architecture)):
        name = f"model-{number:05d}.safetensors"
        tensors = {key: _random(shape, source) for key, shape in shapes.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    total = 2 * architecture.parameters
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_dir())
    config = llama_config(architecture)
    config.eos_token_id, config.pad_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id, 1
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _random(shape: tuple[int, ...], source: torch.Generator) -> torch.Tensor:
    import torch

    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, SCALE, generator=source)


def nf4_policy(architecture: Architecture, profile: Profile, *, seed: int) -> PreTrainedModel:
    """Return a Llama of random weights whose projections are NF4, made matrix by matrix; the rest is bf16.

    It is what `from_pretrained` with `nf4_config` returns, without the 16 GB file: the skeleton is on the meta
    device, bitsandbytes' layers replace the projections, and each takes its numbers and quantises them at once.
    """
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import LlamaForCausalLM
    from transformers.integrations import replace_with_bnb_linear
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.quantizers import AutoHfQuantizer

    from problama_utils.model.loading import nf4_config
    from problama_utils.model.quantisation import keep_differentiable

    config, source = llama_config(architecture), torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    four_bits = nf4_config(profile)
    replace_with_bnb_linear(model, modules_to_not_convert=["lm_head"], quantization_config=four_bits)
    for module in model.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            numbers = _random(tuple(empty.shape), source)
            if isinstance(module, Linear4bit):
                module.weight = Params4bit(numbers, requires_grad=False, quant_type="nf4", compress_statistics=True,
                                           module=module).to("cpu")  # the move is what quantises
            else:
                setattr(module, name, torch.nn.Parameter(numbers, requires_grad=False))
    model.model.rotary_emb = LlamaRotaryEmbedding(config)  # its frequencies are computed, not loaded
    model.is_quantized = model.is_loaded_in_4bit = model.is_4bit_serializable = True  # what peft and the Trainer ask
    model.quantization_method, model.config.quantization_config = four_bits.quant_method, four_bits
    model.hf_quantizer = AutoHfQuantizer.from_config(four_bits)
    keep_differentiable(model)
    return model.eval()


def _rehearse_on_cpu(options: argparse.Namespace) -> int:
    """One GRPO step of Llama-3.1-8B's shape on a CPU; returns 1 where memory is not as computed."""
    import psutil
    from transformers import AutoTokenizer

    from problama_utils.model.loading import attach_lora, parameter_counts
    from problama_utils.model.sizes import held_bytes
    from problama_utils.model.weights import embedded_model_dir
    from problama_utils.monitoring.run_folder import CLOCK, TIMING_FILE, read_table
    from problama_utils.training.run import run_grpo
    from problama_utils.training.trainer import trainer_class

    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    slides, architecture = get_profile("slides"), LLAMA_3_1_8B
    short = replace(slides.riddles, max_steps=1, warmup_steps=0, num_generations=CPU_GROUP, heldout_size=1,
                    max_completion_length=CPU_TOKENS, heldout_every=0)
    profile = replace(slides, backend="transformers", fast_inference=False, optim="adamw_torch_fused", riddles=short)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_dir(), padding_side="left")
    tokenizer.clean_up_tokenization_spaces = False
    trainer_class("stock")  # what the libraries take is counted before the model
    libraries = psutil.Process().memory_info().rss
    started = time.perf_counter()
    model = nf4_policy(architecture, profile, seed=options.seed)
    weights = held_bytes(model)
    print(f"{parameter_counts(model)['total']:,} random weights, {weights / 1e9:.2f} GB in NF4 and bf16, "
          f"{time.perf_counter() - started:.0f} s", flush=True)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tokenizer.eos_token_id, 0
    model = attach_lora(model, profile, seed=options.seed)
    counts = parameter_counts(model)
    with tempfile.TemporaryDirectory(prefix="rehearsal-", dir=options.scratch) as scratch:
        run = run_grpo("riddles", profile, seed=options.seed, out=Path(scratch) / "run", policy=(model, tokenizer),
                       trainer="stock", resume=False, strict=False)
        step = float(read_table(run / TIMING_FILE)[0][CLOCK])
    parts = training_bytes(architecture, "grpo", "qlora", slides.lora.r, peft_path=True)
    peak, computed = _peaks()["peak_gb"], (libraries + sum(parts.values())) / 1e9
    kept = {"weights, adapter and its copy": parts["policy"] + parts["reference"], "gradients": parts["gradients"],
            "Adam": parts["Adam"], "libraries, measured before the model": libraries}
    for name, size in kept.items():
        print(f"  computed {size / 1e9:6.2f} GB  {name}")
    print(f"  held     {held_bytes(model) / 1e9:6.2f} GB  weights, adapter and its copy, measured")
    record = {
        **_record(architecture, {}, options), "way": "TRL + peft, stock trainer, CPU", "group": CPU_GROUP,
        "tokens": CPU_TOKENS, "parameters": counts["total"] - counts["trainable"], "trainable": counts["trainable"],
        "base_gb": round(weights / 1e9, 3), "held_gb": round(held_bytes(model) / 1e9, 3),
        "step_seconds": round(step, 1), "peak_gb": peak, "computed_gb": round(computed, 2),
        "computed_parts_gb": {name: round(size / 1e9, 3) for name, size in kept.items()},
    }
    if options.save:
        _write(record, "8b_cpu")
    agrees = abs(peak - computed) <= AGREEMENT * computed
    if not agrees:
        print(f"Measured and computed memory differ by more than {AGREEMENT:.0%}.")
    print(f"{record['parameters']:,} parameters, {record['trainable']:,} trainable, step {step:.0f} s, "
          f"peak {peak:.1f} GB (computed {computed:.1f} GB)")
    return 0 if agrees else 1


def rehearsed_profile(kind: str, options: argparse.Namespace) -> tuple[Profile, str]:
    """Return profile `slides` as this machine can run it, and in words which way it takes."""
    import torch

    slides = get_profile("slides")
    tokens = options.tokens or (16 if options.miniature else slides.riddles.max_completion_length)
    riddles = replace(slides.riddles, max_steps=options.steps, max_completion_length=tokens,
                      heldout_every=0, heldout_size=1)  # fmt: skip
    slides = replace(slides, riddles=riddles)
    if kind == "course" and torch.cuda.is_available() and find_spec("unsloth"):
        fast = samples_with_vllm(slides)
        return replace(slides, fast_inference=fast), f"unsloth{' + vLLM' if fast else ', without vLLM'}"
    plain = replace(slides, backend="transformers", fast_inference=False)
    if kind == "course" and not torch.cuda.is_available():
        return plain, "shared-prefix trainer + peft"
    return plain, "TRL + peft"


def _train(options: argparse.Namespace) -> dict:
    """Load, attach the adapter, train in this process; return what was measured."""
    import torch

    from problama_utils.model.loading import attach_lora, load_policy, parameter_counts
    from problama_utils.model.sizes import held_bytes
    from problama_utils.monitoring.curves import read_log
    from problama_utils.monitoring.run_folder import CLOCK, TIMING_FILE, read_table
    from problama_utils.training.run import run_grpo

    os.environ["PROBLAMA_MODEL"] = str(options.folder)
    profile, way = rehearsed_profile(options.worker, options)
    started = time.perf_counter()
    model, tokenizer = load_policy(profile, seed=options.seed)
    model = attach_lora(model, profile, seed=options.seed)
    loaded, held = time.perf_counter() - started, held_bytes(model)
    counts = parameter_counts(model)  # before training: TRL adds a copy of the adapter as the reference policy
    run = options.folder.parent / options.worker
    trainer = "stock" if options.worker == "stock" or torch.cuda.is_available() else "shared-prefix"
    run_grpo("riddles", profile, seed=options.seed, out=run, policy=(model, tokenizer), trainer=trainer, resume=False,
             strict=False)  # random weights answer nothing in time, which the checks would rightly refuse
    steps = [float(row[CLOCK]) for row in read_table(run / TIMING_FILE)]
    lengths = [float(length) for length in read_log(run)["completions/mean_length"]]
    step = statistics.median(steps[1:] or steps)
    return {
        "way": way, "profile": asdict(profile), "parameters": counts["total"] - counts["trainable"],
        "trainable": counts["trainable"], "weights_gb": round(held / 1e9, 3), "load_seconds": round(loaded, 1),
        "step_seconds": [round(seconds, 3) for seconds in steps], "step": round(step, 3),
        "tokens_per_second": round(profile.riddles.completions_per_step * statistics.mean(lengths) / step, 1),
        "mean_length": round(statistics.mean(lengths), 1), **_peaks(),
    }  # fmt: skip


def _peaks() -> dict[str, float]:
    import torch

    host = round(peak_memory_gb(), 2)
    if not torch.cuda.is_available():
        return {"peak_gb": host, "peak_of": "process"}
    return {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2), "peak_of": "GPU, allocated",
            "peak_reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2), "host_gb": host}


def _worker(kind: str, options: argparse.Namespace) -> dict:
    """Train one kind in a process of its own (its own peak; unsloth patches TRL for the whole process)."""
    command = [sys.executable, __file__, "--worker", kind, "--folder", str(options.folder)]
    command += ["--steps", str(options.steps), "--tokens", str(options.tokens), "--seed", str(options.seed)]
    command += ["--miniature"] if options.miniature else []
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""} if options.miniature else dict(os.environ)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line[7:])
    words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    print(f"{kind}: {words[-1]}", file=sys.stderr)
    return {"error": words[-1]}


def _write(record: dict, name: str) -> None:
    out = ROOT / "assets" / "runs" / f"rehearsal_{name}_{record['date']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _record(architecture: Architecture, rows: dict[str, dict], options: argparse.Namespace) -> dict:
    import torch

    gpu = None if options.miniature or not torch.cuda.is_available() else torch.cuda.get_device_name(0)
    packages = ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "vllm")
    return {
        "date": date.today().isoformat(), "miniature": options.miniature, "weights": "random",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores" + (f", {gpu}" if gpu else ""),
        "versions": {name: found for name in packages if (found := _version(name))},
        "architecture": asdict(architecture), "seed": options.seed, **rows,
    }  # fmt: skip


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def table(record: dict) -> list[str]:
    """Return the measurements as lines of text, one per training."""
    size = "MINIATURE, not Llama-3.1-8B" if record["miniature"] else "Llama-3.1-8B's architecture"
    heads = (("way", 30), ("parameters", -14), ("trainable", -12), ("weights", -10), ("peak", -10), ("s/step", -8),
             ("tokens/s", -10))
    lines = [f"{size}; random weights in NF4; {record['machine']}",
             f"{'':8}" + "".join(f"{head:{'<' if width > 0 else '>'}{abs(width)}}" for head, width in heads)]
    for kind in KINDS:
        row = record.get(kind, {})
        if "error" in row:
            lines.append(f"{kind:8}stopped: {row['error']}")
        elif row:
            lines.append(f"{kind:8}{row['way']:30}{row['parameters']:>14,}{row['trainable']:>12,}"
                         f"{row['weights_gb']:>7.2f} GB{row['peak_gb']:>7.2f} GB{row['step']:>8.2f}"
                         f"{row['tokens_per_second']:>10.1f}")
    course, stock = (record.get(kind, {}) for kind in KINDS)
    if "step" in course and "step" in stock:
        steps, ratio = len(course["step_seconds"]), stock["step"] / course["step"]
        lines.append(f"stock / course = {ratio:.1f} in seconds per step (median of {steps}, the first left out); peak "
                     f"memory is that of the {course['peak_of']}.")
    if record["miniature"]:
        lines.append("Figures of a miniature say nothing about the full size; it shows that the program runs.")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
