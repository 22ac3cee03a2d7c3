"""Training states on disk: which stay, and what comes back (on which devices: test_sharding.py)."""

import jax.numpy as jnp
import numpy as np

from dim_jax.training.resume import latest_step, training_states


def test_the_latest_stay_and_those_at_multiples(tmp_path):
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
