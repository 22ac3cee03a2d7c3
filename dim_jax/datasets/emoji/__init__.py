"""Emoji drawn by several hands: pictures, captions, and edit pairs that follow from their names."""
