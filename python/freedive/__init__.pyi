from . import objectives as objectives
from . import ops as ops
from .inference import Engine as Engine
from .inference import load as load
from .model import Batch as Batch
from .model import DecoderConfig as DecoderConfig
from .model import Model as Model
from .model import preset as preset
from .runs import UserError as UserError
from .tokenizer import Tokenizer as Tokenizer
from .tokenizer import render as render
from .tokenizer import train_tokenizer as train_tokenizer

__version__: str
