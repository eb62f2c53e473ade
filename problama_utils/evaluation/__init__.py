"""Did it help: held-out accuracy, one record per question, intervals. Knows nothing of rewards."""

from problama_utils import face

__getattr__, __dir__, __all__ = face(__name__, {
    "scoring": "score_questions score_task share_with_interval",
    "records": "read_records",
    "tables": "summarise",
    "uncertainty": "counts_giving gains_and_losses mcnemar standard_error two_level_interval wilson_interval",
})  # fmt: skip
