"""A page to edit pictures and to paint them from text: what a visitor does (`studio`), how it looks (`page`), what comes in (`gate`)."""
