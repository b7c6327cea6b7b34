"""FocusLLM's adapter apart from its run: it comes back bit for bit, and only to the model that it was trained on."""

import numpy as np
import pytest

from anchorjax.checkpoints import focus_adapter
from anchorjax.checkpoints.focus_adapter import FocusAdapter
from anchorjax.config import FocusConfig
from anchorjax.errors import UsageError, WeightsError, WorkdirError
from anchorjax.evaluation.runner import Engine
from anchorjax.inference import language_model
from anchorjax.inference.generation import Generator
from anchorjax.models.linear import named_leaves
from anchorjax.training import loop
from tests.checkpoints.test_pretrained import save_byte_tokenizer
from tests.methods import focus_runs


@pytest.fixture(scope="module")
def made(tmp_path_factory, data_dir):
    """(checkpoint, run, adapter)."""
    base, run, out = (tmp_path_factory.mktemp(name) for name in ("base", "run", "out"))
    focus_runs.write_base(base)
    save_byte_tokenizer(base, "<s>")
    changes = {"data__data_dir": str(data_dir), "data__batch_size": 8, "train__steps": 2, "data__tokenizer": "auto"}
    assert loop.run(focus_runs.config_of(base, **changes), run) == 0
    focus_adapter.export(run, out)
    return base, run, out


def loaded(description):
    mesh = language_model.make_mesh(description.model, 1)
    return language_model.load(description, mesh)


def test_an_adapter_comes_back_bit_for_bit(made):
    base, run, out = made
    of_run = loaded(language_model.describe(workdir=run))
    apart = loaded(language_model.with_adapter(language_model.describe(hf=base), out))
    assert apart.description.focus == of_run.description.focus == FocusConfig(20, 36, 8)
    ours, theirs = named_leaves(of_run.params), named_leaves(apart.params)
    assert ours.keys() == theirs.keys()
    changed = 0
    for name, leaf in ours.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(theirs[name]), err_msg=name)
        if ".candidate." in name:
            changed += (np.asarray(leaf) != np.asarray(ours[name.replace(".candidate", "")])).any()
    assert changed == 4
    prompt = np.random.default_rng(0).integers(97, 122, 4 * 97).tolist()
    texts = [Generator(model).generate([prompt], 4)[0].tokens for model in (of_run, apart)]
    assert texts[0] == texts[1]


def test_another_base_or_directory_is_refused(made, tmp_path):
    base, _, out = made
    focus_runs.write_base(tmp_path, seed=6)
    save_byte_tokenizer(tmp_path, "<s>")
    with pytest.raises(WeightsError, match="other weights"):
        loaded(language_model.with_adapter(language_model.describe(hf=tmp_path), out))
    wide = tmp_path / "wide"
    wide.mkdir()
    focus_runs.write_base(wide, model__d_ff=96)
    save_byte_tokenizer(wide, "<s>")
    with pytest.raises(WeightsError, match=r"model\.d_ff is 64, and here 96"):
        language_model.with_adapter(language_model.describe(hf=wide), out)
    with pytest.raises(WeightsError, match="no adapter"):
        FocusAdapter.open(base, language_model.describe(hf=base).model)
    with pytest.raises(WorkdirError):
        focus_adapter.export(base, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_what_scores_rows_refuses_a_run_before_its_weights_are_read(made, monkeypatch):
    described = language_model.describe(workdir=made[1])
    monkeypatch.setattr(language_model, "load", None)
    with pytest.raises(UsageError, match="cannot be scored"):
        Engine(described, step=None, batch_size=1).scorer()
