"""The policy: loading, adapters, 4 bits, sizes and memory, completions, export."""

from problama_utils import face

__getattr__, __dir__, __all__ = face(__name__, {
    "loading": "attach_lora import_backend load_adapters load_policy parameter_counts speaking_as",
    "completions": "complete render",
    "export": "chat save_gguf save_merged",
    "memory": "LLAMA_3_1_8B REGIMES memory_table training_bytes",
    "sizes": "FORMATS build_on_meta count_by_kind held_bytes kv_cache_bytes weight_bytes with_adapter",
    "quantisation": "bits_per_weight dequantise keep_differentiable "
                    "normal_float_code quantise relative_error uniform_code",
})  # fmt: skip
