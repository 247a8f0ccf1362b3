"""What the other steps are to approximate, where that is not the weight itself."""
