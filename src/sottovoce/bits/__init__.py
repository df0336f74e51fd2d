"""What the bits mean: number formats, plans, codes in bytes. NumPy only; training and the file both import it."""
