from .generator import Behaviour as Behaviour
from .prompts import Prompts as Prompts
from .prompts import load_prompts as load_prompts
from .prompts import score as score
from .registry import BEHAVIOURS as BEHAVIOURS
from .registry import behaviour as behaviour
from .schema import SPLITS as SPLITS
from .schema import PromptPair as PromptPair
from .schema import from_jsonl as from_jsonl
from .schema import to_jsonl as to_jsonl
from .scoring import Score as Score
from .scoring import score_pairs as score_pairs
from .summary import summarise_scores as summarise_scores
from .summary import write_scores as write_scores
from .tokenise import PairTokens as PairTokens
from .tokenise import Tokens as Tokens
from .tokenise import Unsuitable as Unsuitable
from .tokenise import pair_tokens as pair_tokens
from .user import load_jsonl as load_jsonl
from .user import outline_jsonl as outline_jsonl

__all__ = [
    "BEHAVIOURS",
    "SPLITS",
    "Behaviour",
    "PairTokens",
    "PromptPair",
    "Prompts",
    "Score",
    "Tokens",
    "Unsuitable",
    "behaviour",
    "from_jsonl",
    "load_jsonl",
    "load_prompts",
    "outline_jsonl",
    "pair_tokens",
    "score",
    "score_pairs",
    "summarise_scores",
    "to_jsonl",
    "write_scores",
]
