"""The paper's training recipe."""
