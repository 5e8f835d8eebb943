"""Examples and the checks of the exercises in the notebook."""
