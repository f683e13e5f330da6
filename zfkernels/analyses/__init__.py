"""What is asked of a trained network, one file a question: numbers in a dataclass, then a figure or a table."""
