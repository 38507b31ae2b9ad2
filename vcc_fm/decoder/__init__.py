"""The decoder: control cells and perturbation tokens in, a distribution of counts out."""

import logging
import warnings

from transformers.utils import logging as transformers_logging

# Their progress bars over a single shard and their notes on token ids, of which a decoder of counts has none, would
# stand between our lines.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
