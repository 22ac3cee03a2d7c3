"""Solvers of the sampler's ODE, DPM-Solver++ 2M and Euler, and the few steps of consistency models.

Each is linear in the latents and in its last two predictions of the data, so a solver is a table of coefficients, computed once in float64.
No JAX here: the command line lists the names.
"""

import numpy as np
from jaxtyping import Float

Table = Float[np.ndarray, "levels-1 3"]


def euler(sigma: Float[np.ndarray, " levels"]) -> Table:
    """Coefficients a, b, c of x' = a x + b data + c previous_data for every step, where data = x - sigma * velocity; float64."""
    ratio = sigma[1:] / sigma[:-1]
    return np.stack([ratio, 1 - ratio, np.zeros_like(ratio)], 1)


def dpm_solver_2m(sigma: Float[np.ndarray, " levels"]) -> Table:
    """The coefficients of DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2) with alpha = 1 - sigma.

    The first and the last step are of first order, which is Euler's for a straight flow: the one has no past, the other ends where
    log(alpha / sigma) is infinite.
    """
    table = euler(sigma)
    log_snr = np.log(1 - sigma[:-1]) - np.log(sigma[:-1])
    step = np.diff(log_snr)  # h_1 .. h_{n-1}; the last step's is infinite
    second = table[1:-1, 1] * step[1:] / (2 * step[:-1])
    table[1:-1, 1] += second
    table[1:-1, 2] -= second
    return table


SOLVERS = {"dpm++2m": dpm_solver_2m, "euler": euler}  # a new solver is a function and its name here
SCM = "scm"  # not of the ODE: each step goes to the predicted data and adds fresh noise
SOLVER_NAMES = (*SOLVERS, SCM)


def trigflow_sigmas(num_steps: int) -> Float[np.ndarray, " {num_steps}+1"]:
    """The noise levels of SCM, from 1 to 0, float32: sigma = sin t / (sin t + cos t) of TrigFlow's times t (arXiv 2410.11081).

    t goes evenly from 1.5708 to 0, but by way of 1.3 in two steps, as SANA-Sprint does (arXiv 2503.09641). Scaled to the flow's noise
    levels, TrigFlow's latents cos t data + sin t noise are (1 - sigma) data + sigma noise, and its predicted data are x - sigma velocity.
    """
    times = np.array([1.5708, 1.3, 0.0]) if num_steps == 2 else np.linspace(1.5708, 0.0, num_steps + 1)
    return (np.sin(times) / (np.sin(times) + np.cos(times))).astype(np.float32)
