"""Everything a caller may catch. A message says what happened, where, and what to do.

SottoError
├── BadInput (also ValueError)   a value that cannot be used
│   ├── BadPlan                    a plan that does not fit the network
│   └── BadRecipe                  a recipe with unknown or impossible entries
├── BadFile                      a file that cannot be used
│   ├── BadModel                   not a model of ours, damaged, or its self-test failed
│   ├── BadCheckpoint              not a checkpoint, or of another network
│   │   ├── UnsafeCheckpoint         asks for code, or for more than it holds
│   │   ├── UnknownCheckpoint        of no network that is known
│   │   └── OtherEmbedding           does not give the embedding it should
│   ├── BadList                    a manifest or trial list that cannot be read
│   └── BadAudio                   a recording that cannot be used
│       ├── MissingAudio             there is no such file
│       ├── NotAudio                 libsndfile does not know its content
│       ├── EmptyAudio               no samples
│       ├── NonFiniteAudio           NaN or infinite samples
│       ├── TooShort                 shorter than the model's minimum
│       └── SilentAudio              digital silence
└── MissingExtra (also ImportError)  the command needs an optional package
"""

from __future__ import annotations


class SottoError(Exception):
    """Base of all errors that sottovoce raises on purpose."""


class BadInput(SottoError, ValueError):
    """A value that cannot be used."""


class BadPlan(BadInput):
    """A plan that does not fit the network."""


class BadRecipe(BadInput):
    """A recipe with unknown or impossible entries."""


class BadFile(SottoError):
    """A file that cannot be used."""


class BadModel(BadFile):
    """Not a model of ours, damaged, or its self-test failed."""


class BadCheckpoint(BadFile):
    """Not a checkpoint, or one of another network."""


class UnsafeCheckpoint(BadCheckpoint):
    """Asks for code to be run, or for more memory than what it holds."""


class UnknownCheckpoint(BadCheckpoint):
    """Its tensors are those of no known network."""


class OtherEmbedding(BadCheckpoint):
    """The imported network does not give the embedding that it should."""


class BadList(BadFile):
    """A manifest or trial list that cannot be read."""


class BadAudio(BadFile):
    """A recording that cannot be used."""


class MissingAudio(BadAudio):
    """There is no such file."""


class NotAudio(BadAudio):
    """libsndfile does not know the content."""


class EmptyAudio(BadAudio):
    """No samples."""


class NonFiniteAudio(BadAudio):
    """NaN or infinite samples."""


class TooShort(BadAudio):
    """Shorter than the model's minimum."""


class SilentAudio(BadAudio):
    """Every sample is the same: digital silence."""


class MissingExtra(SottoError, ImportError):
    """The command needs an optional package."""
