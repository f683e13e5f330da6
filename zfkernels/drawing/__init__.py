"""What figures and pages are drawn with: ink and axes (style), tensors as pictures (tiles), templates (page)."""
