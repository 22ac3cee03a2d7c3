"""Pictures and texts, as the networks read them: for painting, training and data sets alike."""
