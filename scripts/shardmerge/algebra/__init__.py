"""What an output tensor is, as an expression over source tensors. Pure: no torch."""
