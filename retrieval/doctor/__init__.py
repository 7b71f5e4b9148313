"""Whether a library is sound, and what can be done about it where it is not."""

from __future__ import annotations

from mmsearch.retrieval.doctor.examination import examine
from mmsearch.retrieval.doctor.finding import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "examine"]
