from .checks import check_machine as check_machine
from .machine import Check as Check
from .machine import Status as Status
from .model import check_model as check_model
from .run import Diagnosis as Diagnosis
from .run import diagnose as diagnose
