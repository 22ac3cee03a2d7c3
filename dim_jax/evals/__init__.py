"""Measurements of a painter, from whole data sets to one file of numbers."""
