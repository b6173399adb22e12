from .bundled import bundled_card as bundled_card
from .bundled import bundled_file as bundled_file
from .bundled import make_bundled_corpus as make_bundled_corpus
from .config import CorpusConfig as CorpusConfig
from .config import Source as Source
from .documents import read_documents as read_documents
from .sampling import sample_rows as sample_rows
from .token_rows import Corpus as Corpus
from .token_rows import build_corpus as build_corpus

__all__ = [
    "Corpus",
    "CorpusConfig",
    "Source",
    "build_corpus",
    "bundled_card",
    "bundled_file",
    "make_bundled_corpus",
    "read_documents",
    "sample_rows",
]
