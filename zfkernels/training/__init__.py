"""The paper's training recipe: its numbers and crops, the loop, one process or many, what a run leaves behind."""
