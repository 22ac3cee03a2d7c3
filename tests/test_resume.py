"""Training states on disk: which stay, and what comes back (on which devices: test_sharding.py)."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from dim_jax.errors import InputError
from dim_jax.training.resume import latest_step, read_state, training_states


def test_retention_keeps_latest_and_every_nth_state(tmp_path):
    folder, state = tmp_path / "states", {"a": jnp.arange(4.0)}
    assert latest_step(folder) == 0
    with training_states(folder, keep=2, keep_every=4) as saved:
        assert saved.restore(state) is None
        for step in (2, 4, 6, 8, 9, 10, 12, 14, 15):
            saved.save(step, {"a": state["a"] + step}, {"said": [step / 7]})
    assert sorted(int(path.name) for path in folder.iterdir()) == [4, 8, 12, 14, 15]
    assert latest_step(folder) == 15
    with training_states(folder, keep=2, keep_every=0) as saved:
        restored = saved.restore(state)
        assert restored is not None
        np.testing.assert_array_equal(restored.state["a"], state["a"] + 15)
        assert restored.notes == {"said": [15 / 7]}


@pytest.mark.parametrize("name", ["[lr=1e-3]", "a*b?"])
def test_a_run_may_have_any_name(tmp_path, name):
    folder, state = tmp_path / name / "states", {"a": jnp.arange(4.0)}
    with training_states(folder, keep=1, keep_every=0) as saved:
        saved.save(2, state, {})
        saved.save(4, state, {})
    with training_states(folder, keep=1, keep_every=0) as saved:
        restored = saved.restore(state)
    assert restored is not None
    np.testing.assert_array_equal(restored.state["a"], state["a"])
    assert [path.name for path in folder.iterdir()] == ["4"]


def test_unmerged_state_is_reported_and_kept(tmp_path, monkeypatch):
    folder, state = tmp_path / "states", {"a": jnp.arange(4.0)}
    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path()), "glob", lambda folder, pattern: iter(()))
        with pytest.raises(InputError, match="its arrays are not there"), training_states(folder, keep=1, keep_every=0) as saved:
            saved.save(2, state, {})
    parts = folder / "2" / "state" / "ocdbt.process_0"
    with pytest.raises(InputError, match=r"copy all files of state/ocdbt.process_0/"):
        read_state(folder / "2", state)
    shutil.copytree(parts, folder / "2" / "state", dirs_exist_ok=True)
    np.testing.assert_array_equal(read_state(folder / "2", state)["a"], state["a"])
