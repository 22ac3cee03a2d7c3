"""A trained model on the Hugging Face hub: its files in a published layout, and a card of what its run left behind."""
