from .disk import nearest_folder as nearest_folder
from .fit import refusals as refusals
from .hardware import Hardware as Hardware
from .hardware import asked_hardware as asked_hardware
from .opened_study import OpenedStudy as OpenedStudy
from .opened_study import open_study as open_study
from .plan import Plan as Plan
from .plan import PlanRow as PlanRow
from .plan import Total as Total
from .plan import make_plan as make_plan

__all__ = [
    "Hardware",
    "OpenedStudy",
    "Plan",
    "PlanRow",
    "Total",
    "asked_hardware",
    "make_plan",
    "nearest_folder",
    "open_study",
    "refusals",
]
