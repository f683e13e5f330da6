"""ZFNet, and networks on disk."""
