"""Makes data sets: `dim prepare` and the layouts that it reads; emoji, text, DIM-Edit and DIM-T2I. Training never imports it."""
