"""What is wrong with a command line is said in one line, before anything is read."""

import pytest

from anchorjax.cli import generate, report
from eval import attention_weights, harness, longbench, longppl, needle, perplexity, rope_precision, ruler


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (ruler, ["--hf=x", "--lengths=4K,abc"], "argument --lengths: 'abc' is no length; write 4096, 4K or 1M"),
        (needle, ["--hf=x", "--samples=0"], "argument --samples: '0' is not a whole number above 0"),
        (longbench, ["--hf=x"], "the following arguments are required: --data"),
        (harness, ["--hf=x"], "the following arguments are required: --tasks"),
        (longppl, ["--hf=x", "--alpha=much"], "argument --alpha: 'much' is not a finite number"),
        (longppl, ["--hf=x", "--beta=-inf"], "argument --beta: '-inf' is not a finite number"),
        (needle, ["--hf=x", "--batch-size=0"], "argument --batch-size: '0' is not a whole number above 0"),
        (ruler, ["--hf=x", "--rope-theta=nan"], "argument --rope-theta: 'nan' is not a finite number"),
        (ruler, ["--hf=x", "--rope-theta=-1"], "'-1' is not a number above 0, or 0 for the model's own"),
        (perplexity, ["--hf=x", "--rows=x"], "argument --rows: 'x' is not a whole number of 0 or more"),
        (harness, ["--hf=x", "--tasks=x", "--num-fewshot=-1"], "'-1' is not a whole number of 0 or more"),
        (generate, ["--hf=x", "--max-new-tokens=0"], "argument --max-new-tokens: '0' is not a whole number above 0"),
        (generate, ["--hf=x", "--top-k=few"], "argument --top-k: 'few' is not a whole number of 0 or more"),
        (generate, ["--hf=x", "--top-p=half"], "argument --top-p: 'half' is not a finite number"),
        (perplexity, ["--hf=x", "--window=8K,4K"], "argument --window: '8K,4K' must be one number of tokens"),
        (rope_precision, ["--hf=x", "--tokens=many"], "argument --tokens: 'many' is no length"),
        (attention_weights, ["--hf=x", "--samples=0"], "argument --samples: '0' is not a whole number above 0"),
        (generate, ["--hf=x", "--max-tokens=3"], "unrecognized arguments: --max-tokens=3"),
        (needle, ["--hf=x", "--seed=-1"], "argument --seed: '-1' is not a whole number from 0 to 4294967295"),
        (harness, ["--hf=x", "--tasks=x", "--seed=4294967296"], "argument --seed: '4294967296' is not a whole"),
        (needle, ["--hf=x", "--step=-1"], "argument --step: '-1' is not a whole number of 0 or more"),
        (needle, ["--workdir=gs://bucket/run"], "argument --workdir: 'gs://bucket/run' is an address"),
        (needle, ["--hf=x", "--out=gs://bucket/run"], "argument --out: 'gs://bucket/run' is an address"),
        (report, [], "the following arguments are required: RUN"),
    ],
)
def test_faults_are_one_line(script, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
