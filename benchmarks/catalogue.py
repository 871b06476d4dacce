"""All cases, in the order of the table."""

from __future__ import annotations

from . import (
    cases_growth,
    cases_hot,
    cases_jax,
    cases_limit,
    cases_memory,
    cases_norm,
    cases_optimizer,
    cases_plain,
    cases_policies,
    cases_ranks,
    cases_record,
    cases_samples,
    cases_steps,
    cases_whole,
)
from .row import Case

__all__ = ["CASES"]

CASES: tuple[Case, ...] = (
    *cases_norm.CASES,
    *cases_limit.CASES,
    *cases_optimizer.CASES,
    *cases_policies.CASES,
    *cases_plain.CASES,
    *cases_jax.CASES,
    *cases_record.CASES,
    *cases_growth.CASES,
    *cases_ranks.CASES,
    *cases_memory.CASES,
    *cases_steps.CASES,
    *cases_whole.CASES,
    *cases_hot.CASES,
    *cases_samples.CASES,
)
