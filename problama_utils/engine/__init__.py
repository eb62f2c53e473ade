"""Speed for a Llama on a CPU: prefix trees, layers and their gradients, decoding, sampling. No notebook opens it."""
