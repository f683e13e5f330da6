"""Pictures: read from files, found in folders, cut from photographs, given in batches."""
