from . import reward_model as reward_model
from . import templates as templates
from . import weights as weights
from .reward_model import write_reward as write_reward
