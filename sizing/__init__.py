"""How many sessions fit where, and why: plain arithmetic over specs, budgets, data sheets and measurements."""

from sizing.figures import Figure, Source
from sizing.known import KNOWN, known_model
from sizing.machines import MACHINES, Machine, machine_named
from sizing.measured import Measured, parse_measured
from sizing.plan import Limit, Plan, plan
from sizing.question import Demand, Keeping, Model, Question
from sizing.what_if import WhatIf, what_ifs

__all__ = [
    "KNOWN",
    "MACHINES",
    "Demand",
    "Figure",
    "Keeping",
    "Limit",
    "Machine",
    "Measured",
    "Model",
    "Plan",
    "Question",
    "Source",
    "WhatIf",
    "known_model",
    "machine_named",
    "parse_measured",
    "plan",
    "what_ifs",
]
