"""Where the two sides meet: costs, the regulariser, structures."""
