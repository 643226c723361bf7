"""A table of tiny, randomly initialised models of timm, transformers, diffusers and torch: their kinds of attention.

A library is imported when an entry is built, so that the table exists without it. An entry whose class or setting the
installed version lacks then raises ImportError or AttributeError.
"""

# Imported for the entries that they add, in the order of the table.
from tests.hosts.zoo import timm as _timm  # noqa: F401, I001
from tests.hosts.zoo import transformers_vision as _transformers_vision  # noqa: F401
from tests.hosts.zoo import transformers_text as _transformers_text  # noqa: F401
from tests.hosts.zoo import diffusers as _diffusers  # noqa: F401
from tests.hosts.zoo import own as _own  # noqa: F401
from tests.hosts.zoo.entry import NUM_TOKENS as NUM_TOKENS
from tests.hosts.zoo.entry import ZOO as ZOO
from tests.hosts.zoo.entry import Entry as Entry
from tests.hosts.zoo.entry import names as names

LIBRARIES = tuple(dict.fromkeys(entry.library for entry in ZOO.values()))
