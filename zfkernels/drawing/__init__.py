"""What every figure and page is drawn with."""
