"""Held-out loss of a run, or perplexity of texts by length, for a run or a Hugging Face directory.

python eval/perplexity.py --workdir=runs/quickstart
python eval/perplexity.py --hf DIR --lengths=1K,4K --last=512
python eval/perplexity.py --workdir DIR --text books.jsonl --lengths=16K --window=4K --stride=1K
"""

import sys

from anchorjax.evaluation.tasks.perplexity import main

if __name__ == "__main__":
    sys.exit(main())
