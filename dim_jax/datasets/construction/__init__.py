"""The data that Draw-In-Mind is trained on, rebuilt: DIM-Edit and DIM-T2I, whose construction code was never released."""
