"""A traced model: what its layers do, and how images run through them, up and down."""
