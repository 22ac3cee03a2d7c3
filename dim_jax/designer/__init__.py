"""The designer: what looks at a picture and an instruction and writes the blueprint that the painter paints."""
